//! Labels from closed sets, and metrics that have one child for each.

use std::fmt;
use std::sync::Arc;

use bulkhead_bus::Lane;
use bulkhead_bus::payload::{CheckKind, Outcome};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A word of a closed set, under one label name.
pub trait Label: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    const NAME: &'static str;

    /// Every word that there is.
    fn all() -> Vec<Self>;

    fn word(self) -> &'static str;
}

impl Label for Lane {
    const NAME: &'static str = "lane";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn word(self) -> &'static str {
        self.token()
    }
}

impl Label for Outcome {
    const NAME: &'static str = "outcome";

    fn all() -> Vec<Self> {
        // A new outcome does not compile here before the list has it.
        let listed = |outcome| match outcome {
            Self::Ok | Self::Fail | Self::Error | Self::Missed => outcome,
        };
        [Self::Ok, Self::Fail, Self::Error, Self::Missed].map(listed).to_vec()
    }

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Label for CheckKind {
    const NAME: &'static str = "kind";

    fn all() -> Vec<Self> {
        // The same for a new kind.
        let listed = |kind| match kind {
            Self::Icmp | Self::Tcp | Self::Http | Self::Dns => kind,
        };
        [Self::Icmp, Self::Tcp, Self::Http, Self::Dns].map(listed).to_vec()
    }

    fn word(self) -> &'static str {
        self.as_str()
    }
}

/// Declares a closed set of words and the label that they are under: `pub enum Way("way") { Up = "up", Down = "down" }`.
#[macro_export]
macro_rules! label {
    ($(#[$about:meta])* $vis:vis enum $name:ident($label:literal) {
        $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)?
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl $crate::Label for $name {
            const NAME: &'static str = $label;

            fn all() -> Vec<Self> {
                Self::ALL.to_vec()
            }

            fn word(self) -> &'static str {
                self.as_str()
            }
        }
    };
}

/// What tells the children of one metric apart: a [`Label`], or a pair of them.
pub trait LabelSet: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    fn all() -> Vec<Self>;

    fn pairs(self) -> Vec<(&'static str, &'static str)>;
}

impl<L: Label> LabelSet for L {
    fn all() -> Vec<Self> {
        <L as Label>::all()
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(L::NAME, self.word())]
    }
}

impl<A: Label, B: Label> LabelSet for (A, B) {
    fn all() -> Vec<Self> {
        let seconds = <B as Label>::all();
        <A as Label>::all().into_iter().flat_map(|a| seconds.iter().map(move |b| (a, *b))).collect()
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(A::NAME, self.0.word()), (B::NAME, self.1.word())]
    }
}

/// The children of one metric: one for each value of its labels, from the start and for good.
#[derive(Debug)]
pub struct Labelled<L, M>(Arc<Vec<Child<L, M>>>);

#[derive(Debug)]
struct Child<L, M> {
    key: L,
    pairs: Vec<(&'static str, &'static str)>,
    metric: M,
}

impl<L, M> Clone for Labelled<L, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: LabelSet, M: Default> Default for Labelled<L, M> {
    fn default() -> Self {
        let child = |key: L| Child { key, pairs: key.pairs(), metric: M::default() };
        Self(Arc::new(L::all().into_iter().map(child).collect()))
    }
}

impl<L: LabelSet, M> Labelled<L, M> {
    /// The child with these labels.
    ///
    /// # Panics
    /// When `all` of the label leaves out one of its own words.
    #[must_use]
    pub fn of(&self, key: L) -> &M {
        let found = self.0.iter().find(|child| child.key == key);
        &found.expect("a label set names all of its words").metric
    }
}

impl<L: LabelSet, M: EncodeMetric + TypedMetric> EncodeMetric for Labelled<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|child| child.metric.encode(encoder.encode_family(&child.pairs)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
