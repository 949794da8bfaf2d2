//! Ports that nobody has now.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;

/// Free ports of the loopback interface, each another one.
///
/// # Errors
/// When this machine has none left.
pub fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    let mut ports = [0; COUNT];
    // Held all at once, so that they differ.
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        *port = listener.local_addr().context("find a free port")?.port();
        held.push(listener);
    }
    Ok(ports)
}
