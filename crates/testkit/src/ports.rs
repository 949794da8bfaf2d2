//! Ports that nobody has now.

use bulkhead_accounts::up::free_port;

/// Free ports of the loopback interface, each given once.
///
/// # Errors
/// When this machine has none left.
pub fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    let mut ports = [0; COUNT];
    for port in &mut ports {
        *port = free_port()?;
    }
    Ok(ports)
}
