//! Counts and times of what was served, and `GET /metrics` in Prometheus' text format.
//!
//! Every series exists as `intern_…` and again under vLLM's name (`vllm:…`), so that
//! dashboards made for vLLM show this server.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use intern_lm::FinishReason;

use super::app::App;

/// Upper bounds in seconds of the buckets of every histogram.
const BOUNDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5.0, 10.0, 20.0, 60.0, 180.0,
    600.0,
];

/// A number that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often a time fell into which bucket.
#[derive(Default)]
pub(super) struct Histogram {
    /// One per bound, and one for what exceeds all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In microseconds.
    sum: AtomicU64,
}

impl Histogram {
    /// Adds a time in seconds.
    pub fn add(&self, seconds: f64) {
        let bucket = BOUNDS.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((seconds * 1e6) as u64, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// The average in seconds; none yet without a value.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum() / count as f64)
    }
}

/// What the server counts itself; the engine counts the rest.
#[derive(Default)]
pub(super) struct Metrics {
    /// From submission to the first token.
    pub first_token: Histogram,
    /// Between two tokens of one sequence.
    pub inter_token: Histogram,
    /// From submission to the end.
    pub e2e: Histogram,
    /// From submission to the first prompt tokens read.
    pub queue: Histogram,
    /// From there to the first token.
    pub prefill: Histogram,
    /// From the first token to the end.
    pub decode: Histogram,
    /// Tokens of prompts whose sequences ended.
    pub prompt_tokens: Counter,
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Requests refused because the queue was full.
    pub refused: Counter,
    /// Sequences whose client hung up.
    pub cancelled: Counter,
    /// Requests that failed inside the server.
    pub failed: Counter,
    /// Sequences that ended, by reason: stop, length, tool calls.
    finished: [Counter; 3],
    /// Answers by status class: 2xx, 4xx, 5xx.
    statuses: [Counter; 3],
}

impl Metrics {
    pub fn finish(&self, reason: FinishReason) {
        self.finished[match reason {
            FinishReason::Stop => 0,
            FinishReason::Length => 1,
            FinishReason::ToolCalls => 2,
        }]
        .add(1);
    }

    pub fn status(&self, status: u16) {
        self.statuses[match status {
            0..=399 => 0,
            400..=499 => 1,
            _ => 2,
        }]
        .add(1);
    }
}

pub(super) async fn handle(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render(&app)).into_response()
}

/// Everything as text.
fn render(app: &App) -> String {
    let (stats, own) = (app.engine.stats(), &app.metrics);
    let mut page = Page { out: String::new(), model: escape(&app.name) };
    let gauge = |page: &mut Page, names: &[&str], help, value: f64| page.scalar(names, "gauge", help, value);
    gauge(
        &mut page,
        &["intern_requests_running", "vllm:num_requests_running"],
        "Sequences that run.",
        stats.running as f64,
    );
    // What was admitted and does not run waits, in the engine or before it.
    let waiting = app.gate.inside().saturating_sub(stats.running).max(stats.waiting);
    gauge(
        &mut page,
        &["intern_requests_waiting", "vllm:num_requests_waiting"],
        "Sequences that wait.",
        waiting as f64,
    );
    gauge(
        &mut page,
        &["intern_kv_cache_usage", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
        "Share of the cache's blocks in use, 1 is all.",
        stats.kv_usage(),
    );
    let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    gauge(
        &mut page,
        &["intern_prefix_cache_hit_rate", "vllm:gpu_prefix_cache_hit_rate"],
        "Share of prompt tokens found in the prefix cache.",
        share(stats.prefix_hit_tokens, stats.prefix_lookup_tokens),
    );
    if let Some(bytes) = resident_bytes() {
        gauge(&mut page, &["process_resident_memory_bytes"], "Memory of the process.", bytes as f64);
    }
    for (names, help, value) in [
        (
            &["intern_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"][..],
            "Prompt tokens looked up in the prefix cache.",
            stats.prefix_lookup_tokens,
        ),
        (
            &["intern_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"],
            "Prompt tokens found there.",
            stats.prefix_hit_tokens,
        ),
        (
            &["intern_prompt_tokens_total", "vllm:prompt_tokens_total"],
            "Prompt tokens of answered requests.",
            own.prompt_tokens.get(),
        ),
        (
            &["intern_generation_tokens_total", "vllm:generation_tokens_total"],
            "Tokens generated.",
            own.generated_tokens.get(),
        ),
        (
            &["intern_preemptions_total", "vllm:num_preemptions_total"],
            "Times a sequence gave up its blocks.",
            stats.preemptions,
        ),
        (
            &["intern_spec_decode_draft_tokens_total", "vllm:spec_decode_num_draft_tokens_total"],
            "Tokens guessed.",
            stats.draft_tokens,
        ),
        (
            &["intern_spec_decode_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"],
            "Guesses that were right.",
            stats.accepted_tokens,
        ),
        (&["intern_engine_steps_total"], "Steps of the engine.", stats.steps),
        (
            &["intern_requests_refused_total"],
            "Requests refused because the queue was full.",
            own.refused.get(),
        ),
        (&["intern_requests_cancelled_total"], "Requests whose client hung up.", own.cancelled.get()),
        (&["intern_requests_failed_total"], "Requests that failed inside the server.", own.failed.get()),
    ] {
        page.scalar(names, "counter", help, value as f64);
    }
    let reasons = ["stop", "length", "tool_calls"];
    let reasons: Vec<(&str, u64)> = reasons.into_iter().zip(own.finished.iter().map(Counter::get)).collect();
    page.labelled(
        &["intern_request_success_total", "vllm:request_success_total"],
        "Sequences that ended.",
        "finished_reason",
        &reasons,
    );
    let classes = ["2xx", "4xx", "5xx"];
    let classes: Vec<(&str, u64)> = classes.into_iter().zip(own.statuses.iter().map(Counter::get)).collect();
    page.labelled(&["intern_http_responses_total"], "HTTP answers by status.", "status", &classes);
    for (names, help, histogram) in [
        (
            &["intern_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"][..],
            "From submission to the first token.",
            &own.first_token,
        ),
        (
            &[
                "intern_inter_token_latency_seconds",
                "vllm:inter_token_latency_seconds",
                "vllm:time_per_output_token_seconds",
            ],
            "Between two tokens of a sequence.",
            &own.inter_token,
        ),
        (
            &["intern_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"],
            "From submission to the end.",
            &own.e2e,
        ),
        (
            &["intern_request_queue_time_seconds", "vllm:request_queue_time_seconds"],
            "From submission to the first prompt tokens read.",
            &own.queue,
        ),
        (
            &["intern_request_prefill_time_seconds", "vllm:request_prefill_time_seconds"],
            "From there to the first token.",
            &own.prefill,
        ),
        (
            &["intern_request_decode_time_seconds", "vllm:request_decode_time_seconds"],
            "From the first token to the end.",
            &own.decode,
        ),
    ] {
        page.histogram(names, help, histogram);
    }
    page.out
}

/// A page under way.
struct Page {
    out: String,
    model: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn scalar(&mut self, names: &[&str], kind: &str, help: &str, value: f64) {
        for name in names {
            self.head(name, kind, help);
            let _ = writeln!(self.out, "{name}{{model_name=\"{}\"}} {value}", self.model);
        }
    }

    fn labelled(&mut self, names: &[&str], help: &str, label: &str, values: &[(&str, u64)]) {
        for name in names {
            self.head(name, "counter", help);
            for (is, value) in values {
                let _ =
                    writeln!(self.out, "{name}{{model_name=\"{}\",{label}=\"{is}\"}} {value}", self.model);
            }
        }
    }

    fn histogram(&mut self, names: &[&str], help: &str, histogram: &Histogram) {
        let buckets: Vec<u64> = histogram.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let sum = histogram.sum();
        for name in names {
            self.head(name, "histogram", help);
            let mut below = 0;
            for (i, bucket) in buckets.iter().enumerate() {
                below += bucket;
                let bound = BOUNDS.get(i).map_or("+Inf".to_string(), f64::to_string);
                let _ = writeln!(
                    self.out,
                    "{name}_bucket{{model_name=\"{}\",le=\"{bound}\"}} {below}",
                    self.model
                );
            }
            let model = &self.model;
            let _ = writeln!(
                self.out,
                "{name}_sum{{model_name=\"{model}\"}} {sum}\n{name}_count{{model_name=\"{model}\"}} {below}"
            );
        }
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Memory of this process, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up() {
        let histogram = Histogram::default();
        assert_eq!(histogram.mean(), None);
        for seconds in [0.001, 0.0011, 7.0, 5000.0] {
            histogram.add(seconds);
        }
        let mut page = Page { out: String::new(), model: escape("a\"b") };
        page.histogram(&["x"], "Help.", &histogram);
        for line in [
            "# TYPE x histogram",
            "x_bucket{model_name=\"a\\\"b\",le=\"0.001\"} 1",
            "x_bucket{model_name=\"a\\\"b\",le=\"10\"} 3",
            "x_bucket{model_name=\"a\\\"b\",le=\"+Inf\"} 4",
            "x_count{model_name=\"a\\\"b\"} 4",
        ] {
            assert!(page.out.lines().any(|l| l == line), "{line}\n{}", page.out);
        }
        assert!((histogram.mean().unwrap() - 1251.7505).abs() < 1e-3);
    }
}
