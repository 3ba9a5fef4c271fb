//! What the driver of a device can do of XDP, as it says itself: nothing has to be attached to know it.
//!
//! # Source
//! Documentation/netlink/specs/netdev.yaml and include/uapi/linux/netdev.h, Linux 6.3; generic netlink:
//! include/uapi/linux/genetlink.h.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// `GENL_ID_CTRL`, and of it `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
const CONTROL: (u16, u8) = (16, 3);
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, and of it `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
const DEVICE_GET: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_BASIC`, `NETDEV_XDP_ACT_REDIRECT`.
const BASIC: u64 = 1;
const REDIRECT: u64 = 2;

/// `NLMSG_ERROR` of netlink(7), and `NLM_F_REQUEST`.
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
/// The header of a message, and with that of generic netlink.
const HEADER: usize = 16;
const BOTH_HEADERS: usize = HEADER + 4;

/// What a driver can do of XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Whether it runs programs.
    pub runs: bool,
    /// Whether programs can hand packets to other devices.
    pub redirects: bool,
}

/// Returns what the driver of a device of the calling thread's network namespace can do.
///
/// # Errors
/// What the kernel said; `NotFound` before Linux 6.3, where no driver tells.
pub fn xdp_features(ifindex: u32) -> io::Result<XdpFeatures> {
    let family = ask(CONTROL, &attribute(FAMILY_NAME, b"netdev\0"))?;
    let id = find(&family, FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
    let id = id.ok_or(io::ErrorKind::NotFound)?;
    let device = ask((id, DEVICE_GET), &attribute(DEVICE_INDEX, &ifindex.to_ne_bytes()))?;
    let features = find(&device, XDP_FEATURES).and_then(|bits| Some(u64::from_ne_bytes(bits.try_into().ok()?)));
    let features = features.ok_or(io::ErrorKind::InvalidData)?;
    Ok(XdpFeatures { runs: features & BASIC != 0, redirects: features & REDIRECT != 0 })
}

/// Asks a family of generic netlink one question, and returns the attributes of its answer.
fn ask((family, command): (u16, u8), attributes: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&question((family, command), attributes), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    attributes_in(&answer)
}

fn question((family, command): (u16, u8), attributes: &[u8]) -> Vec<u8> {
    let len = (BOTH_HEADERS + attributes.len()) as u32;
    let (version, sequence, port) = (1_u8, 1_u32, 0_u32);
    let mut message = Vec::new();
    message.extend(len.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(port.to_ne_bytes());
    message.extend([command, version, 0, 0]);
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Returns the attributes of an answer.
fn attributes_in(answer: &[u8]) -> io::Result<Vec<u8>> {
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let kind = answer.get(4..6).and_then(|kind| Some(u16::from_ne_bytes(kind.try_into().ok()?)));
    match (kind, word(HEADER)) {
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error((code as i32).wrapping_neg())),
        _ => answer.get(BOTH_HEADERS..).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// Returns the value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let half = |at: usize| u16::from_ne_bytes([attributes[at], attributes[at + 1]]);
        let (len, kind) = (usize::from(half(0)), half(2));
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_among_others() {
        let all = [attribute(1, &[7]), attribute(3, &5_u64.to_ne_bytes()), attribute(4, &[])].concat();

        assert_eq!(find(&all, 1), Some(&[7][..]));
        assert_eq!(find(&all, 3), Some(&5_u64.to_ne_bytes()[..]));
        assert_eq!((find(&all, 4), find(&all, 2)), (Some(&[][..]), None));
        assert_eq!(find(&[1, 0, 3, 0, 9], 3), None, "it is shorter than itself");
        assert_eq!(find(&[9, 0, 3, 0, 9], 3), None, "it is longer than the answer");
    }

    #[test]
    fn an_error_is_told_as_such() {
        let mut answer = question((ERROR, 0), &[]);
        answer[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());

        assert_eq!(attributes_in(&answer).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(attributes_in(&answer[..BOTH_HEADERS - 1]).is_err());
        assert_eq!(attributes_in(&question(CONTROL, &attribute(1, &[7]))).unwrap(), attribute(1, &[7]));
    }

    #[test]
    fn the_kernel_answers() {
        match xdp_features(1) {
            Ok(features) => assert!(!features.runs, "the loopback has no driver that does"),
            // Before Linux 6.3.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
        assert!(xdp_features(i32::MAX as u32).is_err());
    }
}
