//! Clients for models behind an HTTP API.
