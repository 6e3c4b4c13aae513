// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The compressions of kernel images, by their first bytes; what comes out is bounded.

use std::io::Read;

use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::error::ImageError;

/// The dictionary or window that a decoder may ask for: what `zstd --ultra -22` and `xz -9` take.
const WINDOW_LIMIT: u64 = 128 << 20;
/// A block of LZ4's legacy format holds so much at most.
const LZ4_BLOCK: usize = 8 << 20;
const WHAT: &str = "the compressed kernel";

/// How a kernel is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// CONFIG_KERNEL_GZIP
    Gzip,
    /// CONFIG_KERNEL_BZIP2
    Bzip2,
    /// CONFIG_KERNEL_LZMA
    Lzma,
    /// CONFIG_KERNEL_XZ
    Xz,
    /// CONFIG_KERNEL_LZO
    Lzo,
    /// CONFIG_KERNEL_LZ4
    Lz4,
    /// CONFIG_KERNEL_ZSTD
    Zstd,
}

const MAGICS: [(&[u8], Compression); 7] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (b"BZh", Compression::Bzip2),
    (&[0x5d, 0, 0], Compression::Lzma),
    (b"\xfd7zXZ\0", Compression::Xz),
    (b"\x89LZO", Compression::Lzo),
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
];

impl Compression {
    /// Of something that begins with these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let found = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }

    /// What comes out of `input`, at most `limit` bytes. What follows the compressed data is
    /// ignored: the kernel's build appends the length to most of them.
    pub(crate) fn decode(self, input: &[u8], limit: usize) -> Result<Vec<u8>, ImageError> {
        let window_kib = (WINDOW_LIMIT >> 10) as u32;
        match self {
            Self::Gzip => read_all(flate2::read::GzDecoder::new(input), limit),
            Self::Bzip2 => read_all(bzip2::read::BzDecoder::new(input), limit),
            // The limit is on the whole decoder.
            Self::Lzma => match LzmaReader::new_mem_limit(input, window_kib * 2, None) {
                Ok(reader) => read_all(reader, limit),
                Err(error) => Err(ImageError::damaged(WHAT, error)),
            },
            Self::Xz => read_all(XzReader::new_mem_limit(input, false, window_kib * 2), limit),
            Self::Lzo => Err(ImageError::Compression("LZO")),
            Self::Lz4 => decode_lz4(input, limit),
            Self::Zstd => {
                let mut decoder = FrameDecoder::new();
                decoder.set_max_window_size(WINDOW_LIMIT);
                match StreamingDecoder::new_with_decoder(input, decoder) {
                    Ok(reader) => read_all(reader, limit),
                    Err(error) => Err(ImageError::damaged(WHAT, error)),
                }
            }
        }
    }
}

fn too_large(limit: usize) -> ImageError {
    ImageError::TooLarge {
        what: "the decompressed kernel",
        limit: limit as u64,
    }
}

fn read_all(reader: impl Read, limit: usize) -> Result<Vec<u8>, ImageError> {
    let mut output = Vec::new();
    let mut bounded = reader.take(limit as u64 + 1);
    bounded
        .read_to_end(&mut output)
        .map_err(|error| ImageError::damaged(WHAT, error))?;
    match output.len() > limit {
        true => Err(too_large(limit)),
        false => Ok(output),
    }
}

/// The legacy format: a magic number, then blocks, each with its compressed length before it. The
/// length that the kernel's build appends looks like the beginning of one more.
fn decode_lz4(input: &[u8], limit: usize) -> Result<Vec<u8>, ImageError> {
    let mut rest = input.get(4..).unwrap_or_default();
    let mut output = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, after)) = rest.split_first_chunk() {
        if after.is_empty() {
            break;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let compressed = after
            .get(..length)
            .ok_or(ImageError::Truncated("a block of the compressed kernel"))?;
        let count = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| ImageError::damaged(WHAT, error))?;
        if output.len() + count > limit {
            return Err(too_large(limit));
        }
        output.extend_from_slice(&block[..count]);
        rest = &after[length..];
    }
    Ok(output)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// As the kernel's build compresses it.
    pub(crate) fn encode(compression: Compression, data: &[u8]) -> Vec<u8> {
        let mut encoded = match compression {
            Compression::Gzip => {
                let mut writer =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                writer.write_all(data).unwrap();
                return writer.finish().unwrap();
            }
            Compression::Bzip2 => {
                let mut writer =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Lzma => {
                let options = lzma_rust2::LzmaOptions::with_preset(6);
                let mut writer =
                    lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(6);
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Lzo => b"\x89LZO".to_vec(),
            Compression::Lz4 => {
                let mut output = MAGICS[5].0.to_vec();
                for chunk in data.chunks(LZ4_BLOCK) {
                    let block = lz4_flex::block::compress(chunk);
                    output.extend((block.len() as u32).to_le_bytes());
                    output.extend(block);
                }
                output
            }
            Compression::Zstd => {
                ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
            }
        };
        encoded.extend((data.len() as u32).to_le_bytes());
        encoded
    }

    pub(crate) const READABLE: [Compression; 6] = [
        Compression::Gzip,
        Compression::Bzip2,
        Compression::Lzma,
        Compression::Xz,
        Compression::Lz4,
        Compression::Zstd,
    ];

    #[test]
    fn each_compression_is_known_by_its_beginning_and_read() {
        let data: Vec<u8> = (0..60_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in READABLE {
            let encoded = encode(compression, &data);
            assert_eq!(Compression::of(&encoded), Some(compression));
            assert!(
                compression.decode(&encoded, data.len()).unwrap() == data,
                "{compression:?}"
            );
        }
        let lzo = Compression::Lzo.decode(b"\x89LZO", 1 << 20).unwrap_err();
        assert!(lzo.to_string().contains("LZO"), "{lzo}");
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let zeros = vec![0; 2 << 20];
        for compression in READABLE {
            let bomb = encode(compression, &zeros);
            let error = compression.decode(&bomb, 1 << 20).unwrap_err();
            assert!(
                matches!(error, ImageError::TooLarge { .. }),
                "{compression:?}: {error}"
            );
        }
    }

    #[test]
    fn a_truncated_one_is_an_error() {
        let data: Vec<u8> = (0..50_000u32)
            .flat_map(|n| (n * 77).to_le_bytes())
            .collect();
        for compression in READABLE {
            let encoded = encode(compression, &data);
            let half = &encoded[..encoded.len() / 2];
            assert!(
                compression.decode(half, 1 << 24).is_err(),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn wild_dictionaries_are_not_allocated() {
        // 4 GiB of dictionary; the rest is never looked at.
        let mut lzma = vec![0x5d];
        lzma.extend(u32::MAX.to_le_bytes());
        lzma.extend([0xff; 64]);
        assert!(Compression::Lzma.decode(&lzma, 1 << 20).is_err());
        // A window of 2^41 bytes.
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 0, 0, 0, 0];
        assert!(Compression::Zstd.decode(&zstd, 1 << 20).is_err());
    }
}
