"""Models that answer faster: convolutions fused in eager mode, compiled code, graphs of other runtimes; each compared with the model."""
