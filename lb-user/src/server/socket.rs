//! Where the server listens: a Unix socket that root and its group may use, made in place of a dead agent's.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use tokio::net::UnixListener;

/// Root and its group.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent listens there.
    #[error("listen on {path}: another process does", path = path.display())]
    Live {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("listen on {path}: what is there is no socket", path = path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("listen on {path}: {source}", path = path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The socket's file, as long as it is ours. It is removed with this.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Listens at a path. What a dead agent has left there is replaced, in one step: who connects meets nobody or us, and never
/// a socket that anybody may use.
///
/// # Errors
/// If somebody listens there, or the file system refuses.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let refused = |source| SocketError::Refused { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => return Err(SocketError::Occupied { path: path.to_owned() }),
        Ok(_) if is_live(path) => return Err(SocketError::Live { path: path.to_owned() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(error)),
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(refused)?;
    // Names of instances do not begin with a dot. A path of a socket has 107 bytes at most (unix(7)), so this one is short.
    let room = folder.join(format!(".{}", std::process::id()));
    let _left_by_a_process_of_this_number = fs::remove_dir_all(&room);
    let made = draft(&room, path);
    let _it_may_not_be_there = fs::remove_dir_all(&room);
    made.map_err(refused)
}

/// Makes a socket in a folder that nobody else may enter, so that whatever the umask is nobody connects before it has its
/// mode, and moves it to its place.
fn draft(room: &Path, path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    DirBuilder::new().mode(0o700).create(room)?;
    let draft = room.join("sock");
    let listener = UnixListener::bind(&draft)?;
    fs::set_permissions(&draft, Permissions::from_mode(MODE))?;
    let inode = fs::symlink_metadata(&draft)?.ino();
    fs::rename(&draft, path)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// Returns whether anybody listens at a socket. Nobody is waited for: who listens may have a full queue, and not look at it.
fn is_live(path: &Path) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let tried = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|socket| connect(socket.as_raw_fd(), &UnixAddr::new(path)?));
    matches!(tried, Ok(()) | Err(Errno::EAGAIN))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode);
        if is_ours {
            let _somebody_was_faster = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{Backlog, bind, listen as listen_at};

    use super::*;

    #[tokio::test]
    async fn who_listens_and_does_not_look_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let deaf = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(deaf.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen_at(&deaf, Backlog::new(0).unwrap()).unwrap();
        let _fills_the_queue = UnixStream::connect(&path).unwrap();

        let (sender, answer) = std::sync::mpsc::channel();
        let place = path.clone();
        std::thread::spawn(move || sender.send(is_live(&place)));

        assert_eq!(answer.recv_timeout(std::time::Duration::from_secs(2)), Ok(true));
        assert!(matches!(listen(&path), Err(SocketError::Live { .. })));
    }

    #[tokio::test]
    async fn a_socket_is_for_root_and_its_group_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lb/web.sock");

        let (_listener, file) = listen(&path).unwrap();

        let there = fs::metadata(&path).unwrap();
        assert_eq!((there.mode() & 0o7777, there.file_type().is_socket()), (0o660, true));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_one_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let (live, file) = listen(&path).unwrap();

        assert!(matches!(listen(&path), Err(SocketError::Live { .. })));
        assert!(UnixStream::connect(&path).is_ok(), "the refused one has touched nothing");

        // As a crash leaves it.
        std::mem::forget(file);
        drop(live);
        assert!(path.exists() && UnixStream::connect(&path).is_err());
        let (_listener, file) = listen(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());

        // Whoever comes next replaces it, and the former owner leaves that alone.
        fs::remove_file(&path).unwrap();
        let (_next, _its_file) = listen(&path).unwrap();
        drop(file);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        fs::write(&path, "mine").unwrap();

        assert!(matches!(listen(&path), Err(SocketError::Occupied { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
