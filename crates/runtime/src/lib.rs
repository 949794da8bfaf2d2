//! The life of a process: settings, logs, the connection to the bus, readiness, metrics, start and stop.
//!
//! This is the only crate that names async_nats; everybody else speaks in types of `bulkhead_bus`. It holds no rules
//! about tenants and never decides who may enter.

mod bucket;
mod bus;
mod chain;
mod clock;
mod credentials;
mod durable;
mod headers;
mod health;
mod life;
mod line;
mod link;
mod listen;
mod liveness;
mod log;
mod look;
mod metrics;
mod program;
mod reach;
mod repeats;
mod reply;
mod said;
mod service;
mod settings;
mod snapshot;
mod stranded;
mod survey;
mod tls;
mod trouble;
mod unreadable;
mod wait;

pub use bucket::{
    BucketEntry, BucketError, BucketSpec, BucketWatch, ConditionalWrite, LogSpec, MEMBER_BUCKETS, ValueEnd, WriteError,
};
pub use bus::{Bus, BusSettings, ConnectError, EnsureError, Ensured, PublishError, RequestError, StoreError, Stored};
pub use chain::Chain;
pub use clock::{now_ms, utc_of_ms};
pub use credentials::{Credentials, CredentialsError};
pub use durable::{Delivery, Fetched, Fetcher, Fetching, PullError, Puller};
pub use headers::Headers;
pub use health::{Health, Reached, Readiness, serve_health};
pub use life::{Stop, Supervisor, stop_on_signals};
pub use listen::{Answerer, Listener, Message, Responder};
pub use liveness::{Heart, Loops, STUCK_AFTER};
pub use log::{LogFormat, change_filter, check_filter, init_logs};
pub use look::{ConsumerLook, LookError, StreamLook};
pub use metrics::{
    Ages, Amounts, Buckets, Counter, Declaring, Durations, Gauge, Histogram, Label, LabelSet, Labelled, Page,
    SecondsGauge, age_seconds,
};
pub use program::Program;
pub use reach::{keep_trying, reach_hub, show_hub};
pub use repeats::Repeats;
pub use reply::{ANSWER_BYTES_MAX, Served, encoded, fitting, refused};
pub use said::Said;
pub use service::run_service;
pub use settings::{EXIT_SETTINGS, SettingsError, load_settings, out_of_range};
pub use snapshot::{SnapshotError, StreamSnapshot};
pub use survey::{Answer, SurveyError, expected_consumer, expected_stream};
pub use tls::{TlsError, TlsFiles, client_config, server_config};
pub use trouble::Trouble;
pub use unreadable::{Readable, Unreadable};
pub use wait::{Backoff, LimitReached, eventually};

pub use tokio_util::sync::CancellationToken;
