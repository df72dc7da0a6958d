//! Which of the two first connections becomes the data socket: both nodes compute it from the same two addresses
//! and come to opposite answers.

use std::net::SocketAddr;

use wire::Socket;

/// The bytes of a `sockaddr` as they lie in memory: family, port in network order, then the address. DRBD 9 compares
/// exactly these, so the port weighs more than the IP address. Flow label and scope are part of it for IPv6.
fn sockaddr_bytes(address: &SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes.extend_from_slice(&v4.port().to_be_bytes());
            bytes.extend_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            bytes.extend_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend_from_slice(&v6.port().to_be_bytes());
            bytes.extend_from_slice(&v6.flowinfo().to_be_bytes());
            bytes.extend_from_slice(&v6.ip().octets());
            bytes.extend_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// What an active connection of this node becomes while there is no other socket to that peer.
pub fn first_active_socket(mine: &SocketAddr, peers: &SocketAddr) -> Socket {
    if sockaddr_bytes(mine) > sockaddr_bytes(peers) { Socket::Data } else { Socket::Control }
}

/// The same IP address, whether it came as IPv4 or as IPv4 mapped into IPv6.
pub fn same_ip(a: &SocketAddr, b: &SocketAddr) -> bool {
    a.ip().to_canonical() == b.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The two ends must never agree, or both would open the same socket.
    fn assert_higher(higher: &str, lower: &str) {
        assert_eq!(first_active_socket(&address(higher), &address(lower)), Socket::Data, "{higher} over {lower}");
        assert_eq!(first_active_socket(&address(lower), &address(higher)), Socket::Control, "{lower} under {higher}");
    }

    #[test]
    fn the_ip_decides_between_equal_ports() {
        assert_higher("10.1.1.32:7789", "10.1.1.31:7789");
        assert_higher("10.1.2.1:7789", "10.1.1.200:7789");
        assert_higher("200.0.0.1:7789", "100.0.0.1:7789");
    }

    #[test]
    fn the_port_weighs_more_than_the_ip() {
        assert_higher("10.1.1.31:7790", "10.1.1.32:7789");
        // Network order: 0x0100 = 256 is above 0x00ff = 255, which a little-endian comparison would turn round.
        assert_higher("10.1.1.31:256", "10.1.1.31:255");
        assert_higher("127.0.0.1:512", "127.0.0.1:511");
    }

    #[test]
    fn ipv6_compares_all_of_the_address() {
        assert_higher("[fd00::2]:7789", "[fd00::1]:7789");
        assert_higher("[fd00::1]:7790", "[fd00::ffff]:7789");
    }

    #[test]
    fn mapped_addresses_are_the_same_host() {
        assert!(same_ip(&address("[::ffff:10.1.1.31]:5"), &address("10.1.1.31:7789")));
        assert!(!same_ip(&address("10.1.1.32:5"), &address("10.1.1.31:5")));
    }
}
