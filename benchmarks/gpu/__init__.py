"""What is to be measured on an NVIDIA card, in parts that each run in a process of their own."""
