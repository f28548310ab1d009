//! One integration binary: a module per subcommand.
