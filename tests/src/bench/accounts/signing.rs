//! Account tokens: signed, decoded and validated by us, beside the Go library in the same run.
//!
//! Both sides take tenants' accounts, but not the same text: the size of a token stands beside the seconds.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use bulkhead_accounts::plan::{Plan, PlanName};
use bulkhead_accounts::render::{RoleKey, tenant_account};
use bulkhead_bus::Role;
use bulkhead_claims::validate::{Level, validate};
use bulkhead_claims::{AccountBody, Claims, KeyKind, SigningKey, decode, encode};
use bulkhead_testkit::{GoTool, go_tool};
use serde_json::Value;
use time::OffsetDateTime;

/// What one side took for all tokens.
#[derive(Debug, Clone, Copy)]
pub struct TokenTimes {
    pub sign_s: f64,
    pub decode_s: f64,
    pub validate_s: f64,
    pub token_bytes: u64,
}

/// Both sides, of one run.
#[derive(Debug, Clone, Copy)]
pub struct Signing {
    pub count: usize,
    pub ours: TokenTimes,
    pub go: TokenTimes,
}

/// Signs, decodes and validates `count` accounts, first by the Go library and then by us.
///
/// # Errors
/// When there is no Go, or an account is not valid.
pub(super) fn run_signing(count: usize) -> anyhow::Result<Signing> {
    let program = go_tool(GoTool::ClaimCheck)?.context("there is no Go to compare with: install Go 1.25 or newer")?;
    let go = time_go(&program, count)?;
    Ok(Signing { count, ours: time_ours(count)?, go })
}

fn time_go(program: &Path, count: usize) -> anyhow::Result<TokenTimes> {
    let output =
        Command::new(program).args(["time", "--count", &count.to_string()]).output().context("start claimcheck")?;
    ensure!(output.status.success(), "claimcheck time: {}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).context("read what claimcheck took")?;
    let seconds = |name: &str| said[name].as_f64().with_context(|| format!("claimcheck does not say {name}"));
    Ok(TokenTimes {
        sign_s: seconds("sign_seconds")?,
        decode_s: seconds("decode_seconds")?,
        validate_s: seconds("validate_seconds")?,
        token_bytes: said["token_bytes"].as_u64().context("claimcheck does not say token_bytes")?,
    })
}

fn time_ours(count: usize) -> anyhow::Result<TokenTimes> {
    let operator = SigningKey::generate(KeyKind::Operator);
    let [own, core] = [(); 2].map(|()| SigningKey::generate(KeyKind::Account).public().to_owned());
    let role_key = |role| RoleKey { role, public: SigningKey::generate(KeyKind::Account).public().to_owned() };
    let keys = Role::TENANT.map(role_key);
    let plan = Plan::of(PlanName::Free);
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut tokens = Vec::with_capacity(count);
    let began = Instant::now();
    for _ in 0..count {
        let body = tenant_account(&plan, &own, &core, &keys);
        tokens.push(encode(&mut Claims::new(own.clone(), "acme-corp".to_owned(), now, body), &operator)?);
    }
    let sign_s = began.elapsed().as_secs_f64();
    let mut decoded: Vec<Claims<AccountBody>> = Vec::with_capacity(count);
    let began = Instant::now();
    for token in &tokens {
        decoded.push(decode(token)?);
    }
    let decode_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    for claims in &decoded {
        let blocking = validate(claims, now).into_iter().find(|issue| issue.level == Level::Blocking);
        ensure!(blocking.is_none(), "an account of the measurement is not valid: {blocking:?}");
    }
    let validate_s = began.elapsed().as_secs_f64();
    let token_bytes = tokens.last().map_or(0, String::len) as u64;
    Ok(TokenTimes { sign_s, decode_s, validate_s, token_bytes })
}
