//! A network interface of this namespace.

use ipnet::IpNet;

/// A network interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name of the interface, such as `eth0`.
    pub name: String,
    /// The interface's addresses, with their prefix lengths.
    pub addresses: Vec<IpNet>,
}

impl Interface {
    /// Formats `interfaces` on one line, for a log: `eth0 172.18.0.5/16, lo 127.0.0.1/8`.
    pub(super) fn format_all(interfaces: &[Self]) -> String {
        let format = |interface: &Self| {
            let words = std::iter::once(interface.name.clone()).chain(interface.addresses.iter().map(IpNet::to_string));
            words.collect::<Vec<_>>().join(" ")
        };
        interfaces.iter().map(format).collect::<Vec<_>>().join(", ")
    }
}
