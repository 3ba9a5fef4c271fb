//! Which network namespace something is in, told by the kernel's cookie.
//!
//! A cookie is never reused while the machine runs; an inode number of `/proc/PID/ns/net` may be.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    thread,
};

use nix::sched::{CloneFlags, setns};

/// The socket option that tells the cookie. The C library's bindings do not name it.
///
/// # Source
/// include/uapi/asm-generic/socket.h, Linux 5.14; the same on every architecture that Rust's Linux targets use, except
/// SPARC.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Returns the cookie of the calling thread's network namespace.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub fn current_cookie() -> io::Result<u64> {
    // A socket belongs to the namespace in which it was opened; its address and protocol do not matter.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the descriptor is open as `socket` lives, and the kernel writes at most `length` bytes, the size of
    // `cookie`, for which every pattern of bits is a value.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Returns the cookie of the network namespace that process `pid` is in.
///
/// # Errors
/// `NotFound` if there is no such process, `PermissionDenied` without `CAP_SYS_ADMIN`.
pub fn cookie_of_pid(pid: u32) -> io::Result<u64> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // A thread of its own enters the namespace and ends there, so that no other code ever runs in the wrong one.
    let visitor = thread::Builder::new().name("netns-cookie".into()).spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        current_cookie()
    })?;
    visitor.join().expect("the visiting thread does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_of_a_namespace_is_the_same_each_time() {
        let cookie = current_cookie().unwrap();

        assert_ne!(cookie, 0);
        assert_eq!(current_cookie().unwrap(), cookie);
    }

    #[test]
    fn a_process_that_does_not_exist_is_not_found() {
        assert_eq!(cookie_of_pid(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
