"""The command `letstalk`, one module per subcommand."""
