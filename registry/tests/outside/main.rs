//! The registry from outside: started in this process on free ports, asked over sockets.

mod api;
mod mesh;
mod support;
mod tls;
