//! The bench's hold on its generators.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::generator::Part;
use super::hub;
use super::phases::Settings;

struct Generator {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    count: usize,
}

/// All devices.
pub(crate) struct Generators {
    all: Vec<Generator>,
}

/// When each device had what was expected. Microseconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    pub(crate) came: Vec<u64>,
    pub(crate) durable: Vec<u64>,
}

impl Generators {
    pub(crate) fn start(folder: &Path, settings: &Settings, road: &str) -> Self {
        let (devices, processes) = (settings.devices, settings.generators);
        let share = devices.div_ceil(processes);
        let parts = (0..processes).map(|index| Part {
            folder: folder.join("devices"),
            first: index * share,
            count: share.min(devices - index * share),
            road: road.to_owned(),
            dialling: settings.dialling.div_ceil(processes),
        });
        let start = |part: Part| {
            let log = std::fs::File::create(folder.join(format!("generator-{}.log", part.first))).unwrap();
            let program = std::env::current_exe().unwrap();
            let mut command = Command::new(program);
            command.args(part.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
            let mut child = command.spawn().unwrap();
            let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
            Generator { child, input, output, count: part.count }
        };
        Self { all: parts.map(start).collect() }
    }

    /// Tells all, then hears all.
    pub(crate) fn ask(&mut self, command: &Value) -> Vec<Value> {
        for generator in &mut self.all {
            writeln!(generator.input, "{command}").unwrap();
            generator.input.flush().unwrap();
        }
        self.all.iter_mut().map(Generator::answer).collect()
    }

    /// Opens the devices, which join with these tokens where they have not yet: each token admits so many.
    pub(crate) fn open(&mut self, tokens: &[String]) {
        let mut rest = tokens;
        for generator in &mut self.all {
            let (own, more) = rest.split_at(generator.count.div_ceil(super::TOKEN_USES).min(rest.len()));
            rest = more;
            writeln!(generator.input, "{}", json!({"do": "open", "tokens": own})).unwrap();
            generator.input.flush().unwrap();
        }
        for generator in &mut self.all {
            generator.answer();
        }
    }

    pub(crate) fn sum(&mut self, command: &Value, field: &str) -> u64 {
        self.ask(command).iter().map(|answer| answer[field].as_u64().unwrap()).sum()
    }

    /// The newest record of the fleet's channel that any device knows of.
    pub(crate) fn newest(&mut self) -> u64 {
        self.ask(&json!({"do": "census"})).iter().map(|answer| answer["seq"].as_u64().unwrap()).max().unwrap()
    }

    pub(crate) fn expect(&mut self, seq: u64) {
        self.ask(&json!({"do": "expect", "seq": seq}));
    }

    /// Waits until every device has what is expected.
    pub(crate) fn arrival(&mut self) -> Arrival {
        let mut arrival = Arrival::default();
        for answer in self.ask(&json!({"do": "arrival"})) {
            let numbers = |field: &str| {
                answer[field].as_array().unwrap().iter().map(|value| value.as_u64().unwrap()).collect::<Vec<_>>()
            };
            arrival.came.extend(numbers("came"));
            arrival.durable.extend(numbers("durable"));
        }
        arrival
    }

    /// Counts and troubles since the last time, of all.
    pub(crate) fn counts(&mut self) -> Value {
        let mut total = serde_json::Map::new();
        for answer in self.ask(&json!({"do": "counts"})) {
            for field in ["counts", "troubles"] {
                for (what, count) in answer[field].as_object().unwrap() {
                    let sum = total.entry(what.clone()).or_insert_with(|| json!(0));
                    *sum = json!(sum.as_u64().unwrap() + count.as_u64().unwrap());
                }
            }
        }
        Value::Object(total)
    }

    pub(crate) fn cpu_ms(&self) -> f64 {
        self.all.iter().map(|generator| hub::usage(pid(&generator.child)).cpu_ms).sum()
    }

    pub(crate) fn pss_kib(&self) -> f64 {
        self.all.iter().map(|generator| hub::usage(pid(&generator.child)).pss_kib).sum()
    }
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

impl Generator {
    fn answer(&mut self) -> Value {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap();
        assert!(read > 0, "a generator ended: see its log beside the devices");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Generators {
    fn drop(&mut self) {
        for generator in &mut self.all {
            // It may be gone already.
            drop(generator.child.kill());
            drop(generator.child.wait());
        }
    }
}
