//! The first packet on a socket: eight bytes from the side that connected, which say what the socket is for.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use wire::Socket;

pub const FIRST_PACKET_BYTES: usize = 8;

/// Why a connection that was accepted is no use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FirstPacketError {
    #[error("sent {0:02x?} instead of a first packet; is something else than DRBD or replicad connecting there?")]
    Garbage([u8; FIRST_PACKET_BYTES]),
    #[error("sent nothing for {0:?}")]
    Silence(Duration),
    #[error("closed before its first packet")]
    Closed,
    #[error("failed before its first packet: {0}")]
    Failed(String),
}

/// Reads the first packet and not one byte more: what follows belongs to the resource thread.
pub async fn read(stream: &mut (impl AsyncReadExt + Unpin), patience: Duration) -> Result<Socket, FirstPacketError> {
    let mut bytes = [0; FIRST_PACKET_BYTES];
    match tokio::time::timeout(patience, stream.read_exact(&mut bytes)).await {
        Err(_) => Err(FirstPacketError::Silence(patience)),
        Ok(Ok(_)) => wire::parse_first_packet(bytes).map_err(|_| FirstPacketError::Garbage(bytes)),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(FirstPacketError::Closed),
        Ok(Err(e)) => Err(FirstPacketError::Failed(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn nothing_after_the_first_packet_is_consumed() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(&[&wire::first_packet(Socket::Control)[..], b"rest"].concat()).await.unwrap();
        assert_eq!(read(&mut near, PATIENCE).await, Ok(Socket::Control));
        let mut rest = [0; 4];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[tokio::test]
    async fn garbage_a_short_packet_and_silence_are_refused() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert_eq!(read(&mut near, PATIENCE).await, Err(FirstPacketError::Garbage(*b"GET / HT")));

        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(&wire::first_packet(Socket::Data)[..5]).await.unwrap();
        drop(far);
        assert_eq!(read(&mut near, PATIENCE).await, Err(FirstPacketError::Closed));

        let (mut near, _far) = tokio::io::duplex(64);
        let short = Duration::from_millis(1);
        assert_eq!(read(&mut near, short).await, Err(FirstPacketError::Silence(short)));
    }
}
