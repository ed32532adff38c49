//! Keys and values between the command line, the wire and the screen: UTF-8 text, hexadecimal
//! digits or base64, and standard input or a file for what is too much for a line.
//!
//! Does not know any command. Decoding is strict: a digit out of place, a missing digit or bits
//! that no encoder would write are refused instead of guessed at, because a key that is decoded
//! differently twice is two keys. Every failure is a [`BadRequest`](annulus_types::ErrorKind)
//! raised before anything was sent.

use std::io::{self, BufRead, Read};
use std::path::Path;

use annulus_client::Error;
use annulus_runtime::{OnEnd, RealDisk, Tasks, disk};
use annulus_types::limits;
use bytes::Bytes;

const BASE64_DIGITS: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// More than anybody answers to a question.
const LINE_BYTES: u64 = 1024;

/// How keys and values are written on the command line and in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    Text,
    /// Two hexadecimal digits per byte.
    Hex,
    /// RFC 4648 with padding.
    Base64,
}

impl Encoding {
    /// The encoding that the two flags ask for.
    ///
    /// # Errors
    /// When both are given.
    pub fn from_flags(hex: bool, base64: bool) -> Result<Self, Error> {
        match (hex, base64) {
            (false, false) => Ok(Self::Text),
            (true, false) => Ok(Self::Hex),
            (false, true) => Ok(Self::Base64),
            (true, true) => Err(Error::bad_request("hex", "--hex and --base64 exclude each other")),
        }
    }

    /// The bytes that `text` stands for; `field` names it in the error.
    ///
    /// # Errors
    /// When `text` is not written in this encoding.
    pub fn decode(self, field: &str, text: &str) -> Result<Bytes, Error> {
        let decoded = match self {
            Self::Text => Ok(text.as_bytes().to_vec()),
            Self::Hex => hex_decode(text),
            Self::Base64 => base64_decode(text),
        };
        decoded.map(Bytes::from).map_err(|why| Error::bad_request(field, why))
    }

    /// Like [`Self::decode`], for keys, whose length has limits that never depend on the cluster.
    ///
    /// # Errors
    /// When `text` is not written in this encoding, or the key is empty or too long.
    pub fn decode_key(self, text: &str) -> Result<Bytes, Error> {
        let key = self.decode("key", text)?;
        let most = limits::KEY_BYTES;
        match key.len() {
            0 => Err(Error::bad_request("key", "a key has at least 1 byte")),
            length if length > most => {
                Err(Error::bad_request("key", format!("{length} bytes, the limit is {most}")))
            }
            _ => Ok(key),
        }
    }

    /// `bytes` for a person: in this encoding, or as base64 when they are not text that a terminal
    /// can show. The flag says whether that happened.
    #[must_use]
    pub fn show(self, bytes: &[u8]) -> (String, bool) {
        match (self, printable(bytes)) {
            (Self::Text, Some(text)) => (text.to_owned(), false),
            (Self::Text, None) => (base64_encode(bytes), true),
            (Self::Hex, _) => (hex_encode(bytes), false),
            (Self::Base64, _) => (base64_encode(bytes), false),
        }
    }
}

/// `bytes` as text when it is UTF-8 without anything that would steer a terminal.
fn printable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    (!text.contains(steers)).then_some(text)
}

/// The two forms that a byte string has in JSON: text when it is UTF-8, else base64.
#[must_use]
pub fn json_forms(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(base64_encode(bytes))),
    }
}

/// All of standard input, as it is; `field` names it in errors.
///
/// # Errors
/// When standard input cannot be read or holds more than `bytes_most`.
pub async fn read_stdin(field: &str, bytes_most: u64) -> Result<Bytes, Error> {
    let read = read_aside(move || {
        let mut bytes = Vec::new();
        // One byte more than allowed, to tell "exactly full" from "too much".
        std::io::stdin().lock().take(bytes_most + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let failed = |why: String| Error::bad_request(field, format!("standard input: {why}"));
    match read.await {
        Ok(bytes) if bytes.len() as u64 > bytes_most => {
            Err(failed(format!("more than {bytes_most} bytes")))
        }
        Ok(bytes) => Ok(bytes),
        Err(why) => Err(failed(why)),
    }
}

/// The next line of standard input, for the answer to a question; empty at its end.
///
/// # Errors
/// When standard input cannot be read or the line is not text.
pub async fn read_line() -> Result<String, Error> {
    let read = read_aside(|| {
        let mut line = Vec::new();
        std::io::stdin().lock().take(LINE_BYTES).read_until(b'\n', &mut line)?;
        Ok(line)
    });
    let failed =
        |why: String| Error::bad_request("yes", format!("the answer could not be read: {why}"));
    let line = read.await.map_err(failed)?;
    String::from_utf8(line.to_vec()).map_err(|_| failed("it is not text".to_owned()))
}

/// All of a file; `field` names it in errors.
///
/// # Errors
/// When the file cannot be read or holds more than `bytes_most`.
pub async fn read_file(field: &str, path: &Path, bytes_most: u64) -> Result<Bytes, Error> {
    let owned = path.to_owned();
    let read = read_aside(move || disk::read_file(&RealDisk, &owned, bytes_most)).await;
    read.map_err(|why| Error::bad_request(field, format!("{}: {why}", path.display())))
}

/// All of a file, nothing if there is none; `field` names it in errors.
///
/// # Errors
/// When the file is there but cannot be read or holds more than `bytes_most`.
pub async fn read_file_if_any(field: &str, path: &Path, bytes_most: u64) -> Result<Bytes, Error> {
    let owned = path.to_owned();
    let read = read_aside(move || match disk::read_file(&RealDisk, &owned, bytes_most) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    });
    read.await.map_err(|why| Error::bad_request(field, format!("{}: {why}", path.display())))
}

/// Replaces a file, or makes it: whoever reads it finds the old content or the new one, whole. `field` names
/// it in errors.
///
/// # Errors
/// When the file cannot be written.
pub async fn replace_file(field: &str, path: &Path, content: Bytes) -> Result<(), Error> {
    let owned = path.to_owned();
    let written = read_aside(move || {
        let Some(name) = owned.file_name().and_then(|name| name.to_str()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
        };
        // The folder of a bare name is the current one.
        let folder = owned.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        disk::replace_file(&RealDisk, folder, name, &content)?;
        Ok(Vec::new())
    });
    let failed = |why: String| Error::bad_request(field, format!("{}: {why}", path.display()));
    written.await.map(|_| ()).map_err(failed)
}

/// Works on a thread of its own: that cannot be interrupted, so a command whose time is up leaves it behind
/// instead of waiting for it.
async fn read_aside(
    read: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
) -> Result<Bytes, String> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    Tasks::new()
        .spawn_thread("input", OnEnd::Ignore, move || {
            // Nobody listens any more when the command ran out of time.
            let _ = sender.send(read());
        })
        .map_err(|error| error.to_string())?;
    match receiver.await {
        Ok(Ok(bytes)) => Ok(Bytes::from(bytes)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the reader ended early".to_owned()),
    }
}

fn hex_encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hex_decode(text: &str) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(2) {
        return Err("hexadecimal digits come in pairs".to_owned());
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .ok_or_else(|| "not only hexadecimal digits (0-9, a-f)".to_owned())
    };
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Ok((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
        .collect()
}

/// Base64 with the standard alphabet and padding.
#[must_use]
pub fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| chunk.get(at).copied().unwrap_or(0);
        let bits = u32::from_be_bytes([0, byte(0), byte(1), byte(2)]);
        for position in 0..4 {
            // n bytes fill n + 1 digits; the rest of the four is padding.
            if position <= chunk.len() {
                let digit = (bits >> (18 - 6 * position)) & 63;
                text.push(char::from(BASE64_DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn base64_decode(text: &str) -> Result<Vec<u8>, String> {
    let raw = text.as_bytes();
    let padding = raw.iter().rev().take_while(|&&digit| digit == b'=').count();
    if !raw.len().is_multiple_of(4) || padding > 2 {
        return Err("base64 comes in groups of four digits, the last one padded with =".to_owned());
    }
    let mut bytes = Vec::with_capacity(raw.len() / 4 * 3);
    for chunk in raw[..raw.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for &digit in chunk {
            let value = base64_value(digit).ok_or_else(|| {
                "not only base64 digits (A-Z, a-z, 0-9, + and /, = at the end)".to_owned()
            })?;
            bits = (bits << 6) | value;
        }
        // n digits hold n - 1 bytes; the bits that are left over belong to no byte.
        bits <<= 6 * (4 - chunk.len());
        let [_, first, second, third] = bits.to_be_bytes();
        let group = [first, second, third];
        let (whole, left_over) = group.split_at(chunk.len() - 1);
        if left_over.iter().any(|&byte| byte != 0) {
            return Err("the last base64 digit has bits that belong to no byte".to_owned());
        }
        bytes.extend_from_slice(whole);
    }
    Ok(bytes)
}

fn base64_value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use annulus_types::ErrorKind;

    use super::*;

    #[test]
    fn base64_matches_the_examples_of_its_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64_encode(bytes.as_bytes()), text);
            assert_eq!(base64_decode(text), Ok(bytes.as_bytes().to_vec()), "{text}");
        }
    }

    #[test]
    fn both_codecs_return_every_byte_at_every_position() {
        let all: Vec<u8> = (0..=255).collect();
        for start in 0..3 {
            for end in [253, 254, 255, 256] {
                let bytes = &all[start..end];
                assert_eq!(base64_decode(&base64_encode(bytes)), Ok(bytes.to_vec()));
                assert_eq!(hex_decode(&hex_encode(bytes)), Ok(bytes.to_vec()));
            }
        }
        assert_eq!(hex_decode("00fFA9"), Ok(vec![0, 255, 0xa9]));
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        for bad in ["Zg", "Zg=", "Z===", "====", "Zh==", "Zm9=", "Zg==Zg==", "Zm-v", "Zm v", "Zmé"]
        {
            assert!(base64_decode(bad).is_err(), "{bad}");
        }
        for bad in ["0", "0g", "+1", "0x", " 1", "é"] {
            assert!(hex_decode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_two_flags_exclude_each_other() {
        assert_eq!(Encoding::from_flags(false, false), Ok(Encoding::Text));
        assert_eq!(Encoding::from_flags(true, false), Ok(Encoding::Hex));
        assert_eq!(Encoding::from_flags(false, true), Ok(Encoding::Base64));
        assert!(Encoding::from_flags(true, true).is_err());
    }

    #[test]
    fn keys_have_one_byte_to_the_limit() {
        let longest = "k".repeat(limits::KEY_BYTES);
        assert_eq!(Encoding::Text.decode_key(&longest).map(|key| key.len()), Ok(4096));
        assert_eq!(Encoding::Hex.decode_key("ff00").as_deref(), Ok(&[255u8, 0][..]));
        for bad in ["", &format!("{longest}k")] {
            let refused = Encoding::Text.decode_key(bad).map_err(|error| error.kind);
            assert!(
                matches!(&refused, Err(ErrorKind::BadRequest { field, .. }) if field == "key"),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn what_would_steer_a_terminal_is_shown_as_base64() {
        assert_eq!(Encoding::Text.show("Zoë\n\t1".as_bytes()), ("Zoë\n\t1".to_owned(), false));
        assert_eq!(Encoding::Text.show(b"\x1b[2J"), ("G1sySg==".to_owned(), true));
        assert_eq!(Encoding::Text.show(&[255]), ("/w==".to_owned(), true));
        assert_eq!(Encoding::Hex.show(&[255]), ("ff".to_owned(), false));
        assert_eq!(Encoding::Base64.show(b"f"), ("Zg==".to_owned(), false));
    }

    #[test]
    fn json_holds_text_when_it_can() {
        assert_eq!(json_forms(b"a\x1b"), (Some("a\x1b".to_owned()), None));
        assert_eq!(json_forms(&[0xc3]), (None, Some("ww==".to_owned())));
    }

    #[tokio::test]
    async fn a_file_is_replaced_and_may_be_absent() {
        use annulus_runtime::Disk;

        let folder = std::env::temp_dir().join(format!("annulus-values-{}", std::process::id()));
        RealDisk.create_dir_all(&folder).unwrap();
        let path = folder.join("kept");
        let none = read_file_if_any("session", &path, 8).await;
        for content in ["first", "second"] {
            let written = replace_file("session", &path, Bytes::from(content)).await;
            assert_eq!(written, Ok(()));
            assert_eq!(read_file_if_any("session", &path, 8).await, Ok(Bytes::from(content)));
        }
        let names = RealDisk.list(&folder).unwrap();
        let too_long = read_file_if_any("session", &path, 5).await;
        let nowhere = replace_file("session", &path.join("below"), Bytes::new()).await;
        RealDisk.remove_dir_all(&folder).unwrap();
        assert_eq!(none, Ok(Bytes::new()));
        assert_eq!(names, ["kept"]);
        for error in [too_long.unwrap_err(), nowhere.unwrap_err()] {
            let ErrorKind::BadRequest { field, message } = &error.kind else { panic!("{error:?}") };
            assert_eq!(field, "session");
            assert!(message.contains("kept"), "{message}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_whole_up_to_its_limit() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let text = include_bytes!("../Cargo.toml");
        let read = read_file("file", &path, text.len() as u64).await;
        assert_eq!(read.as_deref(), Ok(&text[..]));
        for (path, limit) in [(path.clone(), text.len() as u64 - 1), (path.join("none"), 1_000)] {
            let error = read_file("file", &path, limit).await.unwrap_err();
            let ErrorKind::BadRequest { field, message } = &error.kind else { panic!("{error:?}") };
            assert_eq!(field, "file");
            assert!(message.contains("Cargo.toml"), "{message}");
        }
    }
}
