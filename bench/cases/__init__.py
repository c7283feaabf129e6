"""What is worked on: lengths of texts, models with examples, files of pairs, and the kernels' inputs."""
