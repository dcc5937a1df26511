//! The figures as a small table on standard output and as a JSON file under `target/bench/`.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Characters of the table's first column.
const WIDTH: usize = 64;

/// Everything measured, in the order it is shown.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(String, f64, &'static str, Option<f64>)>,
}

impl Report {
    pub(crate) fn add(&mut self, what: &str, value: f64, unit: &'static str) {
        self.row(what, value, unit, None);
    }

    /// A figure for which the project has an aim: at most this.
    pub(crate) fn add_with_aim(&mut self, what: &str, value: f64, unit: &'static str, aim: f64) {
        self.row(what, value, unit, Some(aim));
    }

    /// p50 and p99 of `samples`; the aim is for p99.
    pub(crate) fn spread(&mut self, what: &str, samples: &[f64], unit: &'static str, aim: Option<f64>) {
        self.row(&format!("{what} p50 of {}", samples.len()), percentile(samples, 50.0), unit, None);
        self.row(&format!("{what} p99 of {}", samples.len()), percentile(samples, 99.0), unit, aim);
    }

    /// Shows a figure at once: a later fault does not take it away.
    #[expect(clippy::print_stdout, reason = "a bench is run to be read")]
    fn row(&mut self, what: &str, value: f64, unit: &'static str, aim: Option<f64>) {
        let beside = aim.map_or(String::new(), |aim| format!("   aim {aim}, ratio {:.2}", value / aim));
        println!("{what:WIDTH$} {value:>10.2} {unit}{beside}");
        self.rows.push((what.to_owned(), value, unit, aim));
    }

    pub(crate) fn write(&self, folder: &Path, name: &str) {
        let row = |(what, value, unit, aim): &(String, f64, &'static str, Option<f64>)| {
            let mut one = Map::new();
            one.insert("value".into(), json!(value));
            one.insert("unit".into(), json!(unit));
            if let Some(aim) = aim {
                one.insert("aim".into(), json!(aim));
                one.insert("ratio".into(), json!(value / aim));
            }
            (what.clone(), Value::Object(one))
        };
        let figures: Map<String, Value> = self.rows.iter().map(row).collect();
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib = memory.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        let all = json!({"time": time, "cores": cores, "memoryKiB": memory_kib, "figures": figures});
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(name), format!("{all:#}\n")).unwrap();
    }
}

/// The value at or below which `percent` of the samples lie (nearest rank).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank among a few samples")]
pub(crate) fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}
