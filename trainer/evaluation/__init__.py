"""What a finished sequence remembers: images after every task, numbers about them, and a report."""
