//! Wakings: the kernel's ring buffer of flows that have begun at backends that are asleep.

use std::io;

use aya::maps::{Map, MapData, RingBuf};
use lb_ebpf::abi::{Wake, map};
use tokio::io::unix::AsyncFd;

use super::{DatapathError, Pins, maps::failed, sys};

/// The reader. There is one at a time.
pub struct Wakes {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Wakes {
    /// Opens the pinned ring. What nobody has read so far comes first.
    ///
    /// # Errors
    /// What the kernel said.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let opened = MapData::from_pin(pins.path(map::WAKES)).and_then(Map::from_map_data).and_then(RingBuf::try_from);
        let ring = sys::watch(opened.map_err(failed(map::WAKES))?);
        Ok(Self { ring: ring.map_err(|source| DatapathError::Scan { map: map::WAKES, source })? })
    }

    /// Waits for wakings and returns all that there are.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn next(&mut self) -> io::Result<Vec<Wake>> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            let mut wakes = Vec::new();
            while let Some(item) = ready.get_inner_mut().next() {
                wakes.extend(parse(&item));
            }
            ready.clear_ready();
            if !wakes.is_empty() {
                return Ok(wakes);
            }
        }
    }
}

/// Reads a waking; nothing if it is of another version.
fn parse(bytes: &[u8]) -> Option<Wake> {
    let bytes: &[u8; size_of::<Wake>()] = bytes.try_into().ok()?;
    let (backend, generation) = bytes.split_first_chunk::<4>()?;
    Some(Wake { backend: u32::from_ne_bytes(*backend), generation: u32::from_ne_bytes(generation.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waking_is_two_numbers() {
        let bytes = [7_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat();

        assert_eq!(parse(&bytes), Some(Wake { backend: 7, generation: 9 }));
        assert_eq!((parse(&bytes[1..]), parse(&[])), (None, None));
    }
}
