//! Claims with little in them: operator, activation, authorization, generic.

use super::issue::Issues;
use super::text::{is_version, parse_address};
use super::{Validate, check_issuer_account, check_key, check_subject};
use crate::key::KeyKind;
use crate::token::Claims;
use crate::{ActivationBody, AuthorizationRequestBody, AuthorizationResponseBody, GenericBody, OperatorBody};

impl Validate for OperatorBody {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues) {
        let body = &claims.nats;
        let url = &body.account_server_url;
        if !url.is_empty() && parse_address(url).is_none_or(|address| address.scheme.is_empty()) {
            let rule = "it names a protocol, for example https://host/jwt/v1";
            issues.block("account_server_url", format!("{url:?} is no address of an account server: {rule}"));
        }
        for (index, url) in body.operator_service_urls.iter().enumerate() {
            if let Some(rule) = service_url_problem(url) {
                let path = format!("operator_service_urls[{index}]");
                issues.block(&path, format!("{url:?} is no address of servers: {rule}, for example tls://host:4222"));
            }
        }
        for (index, key) in body.signing_keys.iter().enumerate() {
            check_key(&format!("signing_keys[{index}]"), key, KeyKind::Operator, issues);
        }
        if let Some(account) = body.system_account.as_ref().filter(|account| !account.is_empty()) {
            check_key("system_account", account, KeyKind::Account, issues);
        }
        let version = &body.assert_server_version;
        if !version.is_empty() && !is_version(version) {
            issues.block("assert_server_version", format!("{version:?} is no version: write it as 2.14.4"));
        }
    }
}

fn service_url_problem(url: &str) -> Option<&'static str> {
    if url.is_empty() {
        return None;
    }
    let Some(address) = parse_address(url) else { return Some("it is not readable") };
    if address.has_user {
        return Some("it holds a user, which is said by credentials only");
    }
    if address.has_path {
        return Some("it has a path, and servers have none");
    }
    let is_known = matches!(address.scheme.as_str(), "nats" | "tls" | "ws" | "wss");
    (!is_known).then_some("the protocol is nats, tls, ws or wss")
}

/// Also what an import asks of the activation token that it brings.
pub(super) fn check_activation(body: &ActivationBody, issues: &mut Issues) {
    if body.shared.is_none() {
        issues.block("kind", "is not said: it is stream or service, as in the export that it is for");
    }
    check_subject("subject", &body.subject, issues);
    check_issuer_account(&body.issuer_account, issues);
}

impl Validate for ActivationBody {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues) {
        check_activation(&claims.nats, issues);
    }
}

impl Validate for AuthorizationRequestBody {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues) {
        check_key("user_nkey", &claims.nats.user_nkey, KeyKind::User, issues);
    }
}

impl Validate for AuthorizationResponseBody {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues) {
        let body = &claims.nats;
        check_key("sub", &claims.sub, KeyKind::User, issues);
        check_key("aud", claims.aud.as_deref().unwrap_or_default(), KeyKind::Server, issues);
        if body.jwt.is_empty() == body.error.is_empty() {
            issues
                .block("jwt", "an answer is either a user token in jwt or a reason in error: say exactly one of them");
        }
        check_issuer_account(&body.issuer_account, issues);
    }
}

impl Validate for GenericBody {
    fn find_issues(_: &Claims<Self>, _: &mut Issues) {}
}
