"""The demo on this machine, and the private servers that the demo, the tests and the benches use."""
