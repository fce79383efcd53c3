//! The only unsafe code: the few system calls that neither std nor nix offers as safe functions.
#![allow(unsafe_code)]
