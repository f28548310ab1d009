//! The OpenAI wire types, shared by the server and the client.
