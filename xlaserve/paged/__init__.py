"""The paged KV cache: block pool and block tables on the host, paged attention on the device."""
