//! What the suites above unit tests are made of: the real object, real namespaces, real containers.

pub mod agent;
pub mod deaths;
pub mod engine;
pub mod frames;
pub mod lab;
pub mod model;
pub mod object;
pub mod site;
pub mod step;
pub mod suite;
