//! Requests that must not be lost, nor carried out twice.

mod single;
