"""What is asked of trust beyond one link; nothing here opens gold, it reads what `pipeline` graded."""
