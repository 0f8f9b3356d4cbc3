"""One small object per PJRT platform: cpu, cuda, neuron."""
