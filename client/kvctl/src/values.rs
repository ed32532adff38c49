//! Keys and values between the command line, the wire and the screen: UTF-8 text, hexadecimal
//! digits or base64, and standard input for values.
//!
//! Does not know any command. Decoding is strict: a digit out of place, a missing digit or bits
//! that no encoder would write are refused instead of guessed at, because a key that is decoded
//! differently twice is two keys. Every failure is a [`BadRequest`](annulus_types::ErrorKind)
//! raised before anything was sent.

use std::io::Read;

use annulus_runtime::{OnEnd, Tasks};
use annulus_types::{Error, limits};
use bytes::Bytes;

/// The largest value that any cluster can be set up for, bytes: more is not even read from
/// standard input.
const STDIN_BYTES_MOST: usize = 8 * 1024 * 1024;

const BASE64_DIGITS: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

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

/// All of standard input, as it is. The reader is a thread of its own: it cannot be interrupted,
/// so a command whose time is up leaves it behind instead of waiting for it.
///
/// # Errors
/// When standard input cannot be read or holds more than any cluster would store.
pub async fn read_stdin() -> Result<Bytes, Error> {
    let failed = |why: String| Error::bad_request("value", format!("standard input: {why}"));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    Tasks::new()
        .spawn_thread("stdin", OnEnd::Ignore, move || {
            let mut bytes = Vec::new();
            // One byte more than allowed, to tell "exactly full" from "too much".
            let most = STDIN_BYTES_MOST as u64 + 1;
            let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
            // Nobody listens any more when the command ran out of time.
            let _ = sender.send(read.map(|_| bytes));
        })
        .map_err(|error| failed(error.to_string()))?;
    match receiver.await {
        Ok(Ok(bytes)) if bytes.len() > STDIN_BYTES_MOST => {
            Err(failed(format!("more than {STDIN_BYTES_MOST} bytes")))
        }
        Ok(Ok(bytes)) => Ok(Bytes::from(bytes)),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the reader ended early".to_owned())),
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
}
