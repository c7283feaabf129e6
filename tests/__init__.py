"""The tests. A test lies where its subject lies: tests/training/test_trainer.py is that of bertfast/training/trainer.py."""
