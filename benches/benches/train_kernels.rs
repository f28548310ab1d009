//! Training on the CPU: seconds of each kernel, and tokens per second of a whole step, beside the
//! same model written with candle's own differentiable operations.
//!
//! `cargo bench -p intern-benches --bench train_kernels [-- HIDDEN LAYERS VOCAB T B] [ours]`
//! (`ours` leaves out the slow peer)

use candle_core::{D, DType, Device, Result, Tensor, Var};
use intern_kernels::train::{adamw, attention, cross_entropy, gemm, rms_norm, swiglu};
use intern_model::{Architecture, Batch, ModelConfig, Transformer};
use std::collections::HashMap;
use std::time::Instant;

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [hidden, layers, vocab, t, b] = <[usize; 5]>::try_from(sizes).unwrap_or([256, 4, 2048, 256, 16]);
    let config = ModelConfig::small(Architecture::Llama, vocab, hidden, layers, hidden / 32, hidden / 64);
    println!(
        "{} parameters, hidden {hidden}, {layers} layers, vocabulary {vocab}, {b} x {t} tokens, {} threads",
        config.num_parameters(),
        rayon_threads()
    );
    kernels(&config, b, t);
    steps(&config, b, t);
}

fn rayon_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// CPU seconds this process has used, where the system tells: what a busy machine cannot distort.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(") ").next().unwrap_or("").split(' ').filter_map(|f| f.parse().ok()).collect();
    // utime and stime, in ticks of 10 ms; the state letter before them does not parse.
    fields.get(10).zip(fields.get(11)).map_or(f64::NAN, |(user, system)| (user + system) / 100.0)
}

/// Median of a few runs, in milliseconds.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let mut runs: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[2]
}

fn pattern(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.5).collect()
}

fn kernels(config: &ModelConfig, b: usize, t: usize) {
    let (n, c, f) = (b * t, config.hidden_size, config.intermediate_size);
    let (x, w, dy) = (pattern(n * c), pattern(c), pattern(n * c));
    let mut y = vec![0.0; n * c];
    let mut dw = vec![0.0; c];
    println!("rms norm        {:8.2} ms", time(|| rms_norm::forward(&x, &w, 1e-5, &mut y)));
    let backward = time(|| rms_norm::backward(&x, &w, 1e-5, &dy, &mut y, Some(&mut dw)));
    println!("  backward      {backward:8.2} ms");

    let (gate, up) = (pattern(n * f), pattern(n * f));
    let (mut dg, mut du) = (vec![0.0; n * f], vec![0.0; n * f]);
    println!("swiglu          {:8.2} ms", time(|| swiglu::forward(&gate, &up, &mut dg)));
    println!("  backward      {:8.2} ms", time(|| swiglu::backward(&gate, &up, &up, &mut dg, &mut du)));

    let shape = attention::Shape {
        b,
        t,
        heads: config.num_heads,
        kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        window: None,
    };
    let (cos, sin) = intern_model::rope_tables(config, t);
    let starts = vec![0; n];
    let layout = attention::Layout::fused(&shape);
    let ctx = attention::Context {
        shape,
        layout,
        starts: &starts,
        queries: (0, shape.t),
        keys: (0, shape.t),
        cos: &cos,
        sin: &sin,
    };
    let qkv = pattern(n * layout.q.row);
    let (mut out, mut lse) = (vec![0.0; n * c], vec![0.0; n * shape.heads]);
    let forward = time(|| attention::forward(&ctx, &qkv, &qkv, &qkv, &mut out, &mut lse));
    println!("attention       {forward:8.2} ms");
    let mut dqkv = vec![0.0; qkv.len()];
    let backward = time(|| {
        let grads = attention::Gradients::Fused(&mut dqkv);
        attention::backward(&ctx, &qkv, &qkv, &qkv, &out, &lse, &dy, grads);
    });
    println!("  backward      {backward:8.2} ms");

    let head = pattern(config.vocab_size * c);
    let targets: Vec<u32> = (0..n).map(|i| (i % config.vocab_size) as u32).collect();
    let mask = vec![true; n];
    let want = cross_entropy::Want::InputAndWeight;
    let loss = time(|| drop(cross_entropy::linear_cross_entropy(&x, &head, c, &targets, &mask, want)));
    println!("head and loss   {loss:8.2} ms with gradients");

    let weight = pattern(f * c);
    let product = time(|| {
        let (a, b) = (gemm::View::new(&x, n, c), gemm::View::new(&weight, f, c).t());
        gemm::matmul(gemm::ViewMut::new(&mut dg, n, f), gemm::Into::Overwrite, 1.0, a, b);
    });
    println!("product         {product:8.2} ms, {:.0} GFLOP/s", 2.0 * (n * c * f) as f64 / product / 1e6);
    let product = time(|| {
        let (a, b) = (gemm::View::new(&gate, n, f).t(), gemm::View::new(&x, n, c));
        gemm::matmul(gemm::ViewMut::new(&mut du[..f * c], f, c), gemm::Into::Overwrite, 1.0, a, b);
    });
    println!("  for dW        {product:8.2} ms, {:.0} GFLOP/s", 2.0 * (n * c * f) as f64 / product / 1e6);
}

/// AdamW over all variables, with moments beside.
struct Optimizer {
    moments: HashMap<String, (Vec<f32>, Vec<f32>)>,
    step: u64,
}

impl Optimizer {
    fn update(&mut self, vars: &[(String, Var)], grads: &candle_core::backprop::GradStore, count: usize) {
        self.step += 1;
        let update = adamw::Update {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 1.0 / count as f64,
            step: self.step,
        };
        for (name, var) in vars {
            let n = var.elem_count();
            let (m, v) = self.moments.entry(name.clone()).or_insert_with(|| (vec![0.0; n], vec![0.0; n]));
            let g: Vec<f32> = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let mut p: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            adamw::step(&mut p, &g, m, v, &update);
            var.set(&Tensor::from_vec(p, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
}

fn steps(config: &ModelConfig, b: usize, t: usize) {
    let rows: Vec<Vec<u32>> = (0..b)
        .map(|r| (0..=t).map(|i| ((i * i * 31 + r * 17) % config.vocab_size) as u32).collect())
        .collect();
    let batch = Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let n = batch.num_targets();
    let run = |name: &str, loss: &dyn Fn(&Transformer) -> Result<Tensor>| {
        let model = Transformer::init(config, 0, &Device::Cpu).unwrap();
        let vars = model.named_vars();
        let mut optimizer = Optimizer { moments: HashMap::new(), step: 0 };
        let mut best = f64::INFINITY;
        let mut phases = [0.0; 3];
        let mut losses = Vec::new();
        let cpu = cpu_seconds();
        for _ in 0..6 {
            let start = Instant::now();
            let sum = loss(&model).unwrap();
            losses.push(sum.to_scalar::<f32>().unwrap() / n as f32);
            let forward = start.elapsed().as_secs_f64();
            let grads = sum.backward().unwrap();
            let backward = start.elapsed().as_secs_f64() - forward;
            optimizer.update(&vars, &grads, n);
            let all = start.elapsed().as_secs_f64();
            if all < best {
                best = all;
                phases = [forward, backward, all - forward - backward].map(|s| s * 1e3);
            }
        }
        let flops =
            6.0 * (config.num_parameters() - config.vocab_size * config.hidden_size) as f64 * n as f64;
        let cpu = (cpu_seconds() - cpu) / losses.len() as f64;
        println!(
            "{name:15} {:8.0} tokens/s, {:.0} GFLOP/s; step {:.0} ms = forward {:.0} + backward {:.0} + update {:.0}, \
             {cpu:.2} CPU-s; loss {:.4} to {:.4}",
            n as f64 / best,
            flops / best / 1e9,
            best * 1e3,
            phases[0],
            phases[1],
            phases[2],
            losses[0],
            losses[losses.len() - 1],
        );
    };
    if !std::env::args().any(|a| a == "ours") {
        run("candle alone", &|model| primitive_loss(model, &batch));
    }
    run("our operations", &|model| Ok(model.loss(&batch)?.sum));
}

/// The same loss with candle's own differentiable operations: what one writes first.
fn primitive_loss(model: &Transformer, batch: &Batch) -> Result<Tensor> {
    let (config, device) = (model.config(), Device::Cpu);
    let vars: HashMap<String, Var> = model.named_vars().into_iter().collect();
    let var = |name: &str| vars[&format!("{name}.weight")].as_tensor().clone();
    let (b, t, h, g, d) = (batch.b, batch.t, config.num_heads, config.num_kv_heads, config.head_dim);
    let norm = |x: &Tensor, name: &str| -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + config.rms_norm_eps)?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(&var(name))
    };
    let linear = |x: &Tensor, name: &str| x.broadcast_matmul(&var(name).t()?);
    let (cos, sin) = intern_model::rope_tables(config, t);
    let (cos, sin) =
        (Tensor::from_vec(cos, (t, d / 2), &device)?, Tensor::from_vec(sin, (t, d / 2), &device)?);
    let rope = |x: Tensor| -> Result<Tensor> {
        let (x1, x2) = (x.narrow(D::Minus1, 0, d / 2)?, x.narrow(D::Minus1, d / 2, d / 2)?);
        let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
        let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
        Tensor::cat(&[y1, y2], D::Minus1)
    };
    let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (t, t), &device)?;
    let heads = |x: Tensor, n: usize| x.reshape((b, t, n, d))?.transpose(1, 2)?.contiguous();
    let repeat = |x: Tensor| x.unsqueeze(2)?.expand((b, g, h / g, t, d))?.contiguous()?.reshape((b, h, t, d));
    let softmax = |x: &Tensor| -> Result<Tensor> {
        let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
    };

    let ids = Tensor::from_vec(batch.tokens.clone(), b * t, &device)?;
    let mut x = var("model.embed_tokens").index_select(&ids, 0)?.reshape((b, t, ()))?;
    for layer in 0..config.num_layers {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let y = norm(&x, &at("input_layernorm"))?;
        let q = rope(heads(linear(&y, &at("self_attn.q_proj"))?, h)?)?;
        let k = repeat(rope(heads(linear(&y, &at("self_attn.k_proj"))?, g)?)?)?;
        let v = repeat(heads(linear(&y, &at("self_attn.v_proj"))?, g)?)?;
        let scores = (q.matmul(&k.t()?)? / (d as f64).sqrt())?.broadcast_add(&mask)?;
        let y = softmax(&scores)?.matmul(&v)?.transpose(1, 2)?.reshape((b, t, h * d))?;
        x = (x + linear(&y, &at("self_attn.o_proj"))?)?;
        let y = norm(&x, &at("post_attention_layernorm"))?;
        let y = (linear(&y, &at("mlp.gate_proj"))?.silu()? * linear(&y, &at("mlp.up_proj"))?)?;
        x = (x + linear(&y, &at("mlp.down_proj"))?)?;
    }
    let logits = linear(&norm(&x, "model.norm")?, "lm_head")?.reshape((b * t, ()))?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let lse = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let targets = Tensor::from_vec(batch.targets.clone(), (b * t, 1), &device)?;
    (lse - shifted.gather(&targets, 1)?)?.sum_all()?.to_dtype(DType::F32)
}
