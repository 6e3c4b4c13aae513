// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which functions of the kernel a phase spends its time in.
//!
//! All processors are sampled, so what else runs on the machine is in it too. Functions have the
//! names of /proc/kallsyms; what the compiler has inlined counts to its caller. Sampling costs some
//! percent, so a profile is not measured together with figures that are to be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::sys::Sampler;

/// Between two samples. Longer than a timer of an emulated machine is late.
const PERIOD_NS: u64 = 500_000;

/// Functions that are remembered of a phase: what is below them is noise.
const FUNCTIONS_MAX: usize = 40;

/// The longest name that is remembered.
const NAME_MAX: usize = 96;

/// More than a [`Profile`] takes as JSON.
pub const PROFILE_ROOM: usize = FUNCTIONS_MAX * (NAME_MAX + 64) + 128;

/// Where the time of a phase went, in samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// How many there are.
    pub samples: u64,
    /// How many found no room.
    pub lost: u64,
    /// Those with the most samples of their own, by their names.
    pub functions: BTreeMap<String, Samples>,
}

/// Samples of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// In it.
    pub own: u64,
    /// In it, or in what it called.
    pub all: u64,
}

impl Samples {
    fn merge(&mut self, other: Self) {
        self.own += other.own;
        self.all += other.all;
    }
}

/// Profiles of the phases of a live update, by their names.
pub type Profiles = BTreeMap<String, Profile>;

/// Samples all processors while work is done that it is given.
#[derive(Debug)]
pub struct Profiler {
    samplers: Vec<Sampler>,
    functions: Functions,
}

impl Profiler {
    /// A profiler of this machine.
    ///
    /// # Errors
    ///
    /// Those of `perf_event_open(2)`.
    pub fn new() -> Result<Self> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online")
            .context("reading which processors there are")?;
        let samplers = processors(&online)
            .into_iter()
            .map(|processor| Sampler::new(processor, PERIOD_NS));
        let samplers = samplers.collect::<std::io::Result<_>>();
        Ok(Self {
            samplers: samplers.context(
                "sampling the kernel; that takes root and a kernel with CONFIG_PERF_EVENTS",
            )?,
            functions: Functions::of_this_kernel()?,
        })
    }

    /// Samples during `work`.
    ///
    /// # Errors
    ///
    /// Those of `work`, and of the kernel's counters.
    pub fn sample<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        self.switch(true)?;
        let result = work();
        self.switch(false)?;
        result
    }

    fn switch(&self, on: bool) -> Result<()> {
        let mut samplers = self.samplers.iter();
        let switched = samplers.try_for_each(|sampler| sampler.switch(on));
        switched.context("switching the kernel's counters")
    }

    /// What was sampled.
    pub fn finish(mut self) -> Profile {
        let mut profile = Profile::default();
        for sampler in &mut self.samplers {
            let recorded = Records(&sampler.take()).read();
            profile.lost += recorded.lost;
            for chain in recorded.chains {
                let names = chain
                    .iter()
                    .filter_map(|&address| self.functions.name(address));
                profile.add(names);
            }
        }
        profile.with_the_most()
    }
}

impl Profile {
    /// Adds a sample: the function that ran, the one that called it, and so on.
    fn add<'a>(&mut self, chain: impl Iterator<Item = &'a str>) {
        self.samples += 1;
        let mut seen = BTreeSet::new();
        for (depth, name) in chain.enumerate() {
            let samples = self.functions.entry(name.to_owned()).or_default();
            samples.own += u64::from(depth == 0);
            // A function that calls itself has the sample once.
            samples.all += u64::from(seen.insert(name));
        }
    }

    /// Adds those of another run.
    pub fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        self.lost += other.lost;
        for (name, more) in &other.functions {
            self.functions.entry(name.clone()).or_default().merge(*more);
        }
    }

    /// The functions that matter, under the names that their authors gave them.
    fn with_the_most(self) -> Self {
        let mut functions = BTreeMap::<String, Samples>::new();
        for (name, samples) in self.sorted().into_iter().take(FUNCTIONS_MAX) {
            let name = format!("{:#}", rustc_demangle::demangle(name));
            let name = name.chars().take(NAME_MAX).collect();
            functions.entry(name).or_default().merge(samples);
        }
        Self { functions, ..self }
    }

    /// Those with the most samples of their own come first.
    fn sorted(&self) -> Vec<(&str, Samples)> {
        let functions = self.functions.iter();
        let mut sorted: Vec<_> = functions
            .map(|(name, samples)| (name.as_str(), *samples))
            .collect();
        sorted.sort_by_key(|(_, samples)| std::cmp::Reverse((samples.own, samples.all)));
        sorted
    }

    /// A table: what share of the samples each function has, by itself and with what it calls.
    pub fn table(&self) -> String {
        let percent = |samples: u64| 100.0 * samples as f64 / self.samples.max(1) as f64;
        let mut lines = vec![format!("{} samples, {} lost", self.samples, self.lost)];
        let functions = self.sorted().into_iter();
        lines.extend(
            functions
                .filter(|(_, samples)| percent(samples.all) >= 1.0)
                .map(|(name, Samples { own, all })| {
                    format!("{:5.1} % {:5.1} %  {name}", percent(own), percent(all))
                }),
        );
        lines.join("\n")
    }
}

/// The processors of a list such as `0-3,8`.
fn processors(list: &str) -> Vec<u32> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// What a sampler has recorded.
struct Records<'a>(&'a [u8]);

#[derive(Debug, Default, PartialEq)]
struct Recorded {
    /// Of each sample the addresses, the innermost first.
    chains: Vec<Vec<u64>>,
    lost: u64,
}

impl Records<'_> {
    const LOST: u32 = 2;
    const SAMPLE: u32 = 9;
    /// Larger numbers are no addresses: they tell whose the next ones are.
    const CONTEXT_FIRST: u64 = -4095i64 as u64;

    fn read(mut self) -> Recorded {
        let mut recorded = Recorded::default();
        while let Some((kind, words)) = self.next() {
            let words: Vec<u64> = words
                .chunks_exact(8)
                .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
                .collect();
            match (kind, &words[..]) {
                (Self::LOST, [_, lost, ..]) => recorded.lost += lost,
                // The number of addresses comes first.
                (Self::SAMPLE, [_, chain @ ..]) => {
                    let addresses = chain.iter().copied();
                    let chain = addresses.filter(|&address| address < Self::CONTEXT_FIRST);
                    recorded.chains.push(chain.collect());
                }
                _ => {}
            }
        }
        recorded
    }

    /// The kind of the next record, and what follows its header.
    fn next(&mut self) -> Option<(u32, &[u8])> {
        const HEADER: usize = 8;
        let header = self.0.get(..HEADER)?;
        let kind = u32::from_le_bytes(header[..4].try_into().ok()?);
        let length = usize::from(u16::from_le_bytes(header[6..].try_into().ok()?));
        let record = self.0.get(HEADER..length)?;
        self.0 = &self.0[length..];
        Some((kind, record))
    }
}

/// The functions of a kernel, in the order of their addresses.
#[derive(Debug)]
struct Functions(Vec<(u64, String)>);

impl Functions {
    fn of_this_kernel() -> Result<Self> {
        const FILE: &str = "/proc/kallsyms";
        let text = fs::read_to_string(FILE).with_context(|| format!("reading {FILE}"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let function = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
            let name = words.next()?;
            is_code.then(|| (address, name.to_owned()))
        };
        let mut functions: Vec<_> = text.lines().filter_map(function).collect();
        functions.sort();
        Self(functions)
    }

    /// The function at an address.
    fn name(&self, address: u64) -> Option<&str> {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        let (_, name) = self.0.get(after.checked_sub(1)?)?;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, words: &[u64]) -> Vec<u8> {
        let length = 8 + 8 * words.len() as u16;
        let header = [&kind.to_le_bytes()[..], &[0, 0], &length.to_le_bytes()].concat();
        let words = words.iter().flat_map(|word| word.to_le_bytes());
        header.into_iter().chain(words).collect()
    }

    #[test]
    fn records_are_read_as_far_as_they_are_whole() {
        let records = [
            record(Records::SAMPLE, &[3, -128i64 as u64, 0x1010, 0x2000]),
            record(5, &[1, 2, 3]),
            record(Records::LOST, &[9, 4]),
            record(Records::SAMPLE, &[1, 0x1000]),
        ]
        .concat();
        let recorded = Records(&records).read();
        assert_eq!(recorded.chains, [vec![0x1010, 0x2000], vec![0x1000]]);
        assert_eq!(recorded.lost, 4);
        for length in 0..records.len() {
            let part = Records(&records[..length]).read();
            assert!(part.chains.len() < 2);
        }
        assert_eq!(
            Records(&[0; 64]).read(),
            Recorded::default(),
            "a length of 0"
        );
    }

    #[test]
    fn a_profile_has_the_functions_with_the_most_samples() {
        let functions = Functions::parse(
            "0000000000002000 T caller\n0000000000001000 t inner\n0000000000001800 d data\n\
             0000000000003000 T _RNvCs1_3luo4walk\n",
        );
        assert_eq!(functions.name(0xfff), None);
        assert_eq!(functions.name(0x1fff), Some("inner"));
        let mut profile = Profile::default();
        for chain in [&[0x1000, 0x2000][..], &[0x2000, 0x3004, 0x2000], &[0x3001]] {
            profile.add(chain.iter().filter_map(|&address| functions.name(address)));
        }
        let mut profile = profile.with_the_most();
        let samples = |own, all| Samples { own, all };
        let expected = [
            ("caller".to_owned(), samples(1, 2)),
            ("inner".to_owned(), samples(1, 1)),
            ("luo::walk".to_owned(), samples(1, 2)),
        ];
        assert_eq!(profile.functions, BTreeMap::from(expected));
        let other = profile.clone();
        profile.merge(&other);
        assert_eq!(
            profile.table(),
            "6 samples, 0 lost\n 33.3 %  66.7 %  caller\n 33.3 %  66.7 %  luo::walk\n \
             33.3 %  33.3 %  inner"
        );
    }

    #[test]
    fn a_profile_fits_its_room() {
        let mut profile = Profile::default();
        for number in 0..1000 {
            let name = format!("{number}{}", "x".repeat(300));
            profile.add([name.as_str()].into_iter());
        }
        let json = serde_json::to_vec(&profile.with_the_most()).unwrap();
        assert!(json.len() < PROFILE_ROOM, "{}", json.len());
    }

    #[test]
    fn lists_of_processors_have_ranges() {
        assert_eq!(processors("0-2,5\n"), [0, 1, 2, 5]);
        assert!(processors("").is_empty());
    }
}
