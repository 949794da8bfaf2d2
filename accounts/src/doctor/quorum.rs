//! Whether enough hub servers are there to store anything. Each is greeted by itself, before anybody is asked through
//! one of them: a server that is frozen takes connections and never says a word.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use super::finding::{Area, Finding, Look};
use super::home::{Home, HubFolder};
use super::listeners::addresses;

static QUORUM: Look = Look {
    area: Area::Links,
    name: "hub-quorum",
    rule: "more than half of the hub's servers are there",
    meaning: "nothing is acknowledged and nothing is lost: results wait at the leaves, then in the pollers' memory",
};

pub(super) const LOOKS: &[&Look] = &[&QUORUM];

const GREETING_LIMIT: Duration = Duration::from_secs(2);
const NUMBERS: [&str; 4] = ["none", "one", "two", "three"];

/// A hub server and the port of its clients when it says its greeting there.
struct Greeted {
    server: String,
    port: Option<u16>,
}

/// Which hub servers are there.
#[derive(Default)]
pub(super) struct Presence {
    servers: Vec<Greeted>,
}

/// A nats-server says this first, to whoever connects.
async fn greets(address: &str) -> bool {
    let greeting = async {
        let mut first = String::new();
        BufReader::new(TcpStream::connect(address).await?).read_line(&mut first).await?;
        Ok::<_, std::io::Error>(first.starts_with("INFO "))
    };
    matches!(tokio::time::timeout(GREETING_LIMIT, greeting).await, Ok(Ok(true)))
}

fn number(count: usize) -> String {
    NUMBERS.get(count).map_or_else(|| count.to_string(), |&word| word.to_owned())
}

fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

impl Presence {
    pub(super) async fn of(home: &Home) -> Self {
        let greet = async |hub: &HubFolder| {
            let address = addresses(&hub.config_file()).into_iter().next();
            let port = match &address {
                Some(address) if greets(address).await => port_of(address),
                Some(_) | None => None,
            };
            Greeted { server: hub.server_name.clone(), port }
        };
        Self { servers: join_all(home.hubs.iter().map(greet)).await }
    }

    fn away(&self) -> Vec<&str> {
        self.servers.iter().filter(|greeted| greeted.port.is_none()).map(|greeted| greeted.server.as_str()).collect()
    }

    /// How many answers to wait for: for those of servers that are away nobody waits.
    pub(super) fn there(&self) -> usize {
        self.servers.len() - self.away().len()
    }

    fn is_there(&self, address: &str) -> bool {
        port_of(address).is_some_and(|port| self.servers.iter().any(|greeted| greeted.port == Some(port)))
    }

    /// The addresses of servers that are there; all of them when none is, so that the reason is found.
    pub(super) fn reachable(&self, urls: Vec<String>) -> Vec<String> {
        let there: Vec<String> = urls.iter().filter(|url| self.is_there(url)).cloned().collect();
        if there.is_empty() { urls } else { there }
    }

    /// Why nothing can be stored, in a hub of several servers; a hub of one is there or not, which is `hub-answers`.
    pub(super) fn lost(&self) -> Option<String> {
        let (count, away) = (self.servers.len(), self.away().len());
        let is_lost = count > 1 && (count - away) * 2 <= count;
        is_lost.then(|| format!("{} of {} hub servers are away", number(away), number(count)))
    }

    /// Whether one or more is missing.
    pub(super) fn is_any_away(&self) -> bool {
        !self.away().is_empty()
    }

    /// Whether not one of several is there.
    pub(super) fn is_all_away(&self) -> bool {
        self.servers.len() > 1 && self.away().len() == self.servers.len()
    }

    pub(super) fn finding(&self, home: &Home) -> Finding {
        let (count, away) = (self.servers.len(), self.away());
        let needed = (count / 2 + 1).saturating_sub(count - away.len());
        match self.lost() {
            Some(_) if home.up.is_none() => QUORUM.skip("hub", "nothing runs"),
            None if count < 2 && !away.is_empty() => QUORUM.skip("hub", "a hub of one server: see hub-answers"),
            None => QUORUM.ok("hub", format!("{} of {} are there", number(count - away.len()), number(count))),
            Some(_) => {
                let back = if needed == 1 { "one is".to_owned() } else { format!("{} are", number(needed)) };
                let found = format!(
                    "{} of {} are away: nothing is stored until {back} back ({})",
                    number(away.len()),
                    number(count),
                    away.join(", ")
                );
                let advice = "bring one back with its disk, and empty none: see hub-server and process-runs, then docs/runbooks/replace-a-hub-server.md";
                QUORUM.fail("hub", found, advice)
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use time::OffsetDateTime;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::super::finding::Level;
    use super::*;

    /// A hub of which these servers are there.
    pub(in crate::doctor) fn presence(there: &[bool]) -> Presence {
        let greeted = |(number, there): (u16, &bool)| Greeted {
            server: format!("hub-{number}"),
            port: there.then_some(4_000 + number),
        };
        Presence { servers: (1..).zip(there).map(greeted).collect() }
    }

    #[test]
    fn two_of_three_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        home.up = Some(1);
        let found = |there: &[bool]| {
            let finding = presence(there).finding(&home);
            (finding.level, finding.found)
        };
        assert_eq!(found(&[true]), (Level::Ok, "one of one are there".to_owned()));
        assert_eq!(found(&[false]).0, Level::Skip);
        assert_eq!(found(&[true, true, false]), (Level::Ok, "two of three are there".to_owned()));
        let two = "two of three are away: nothing is stored until one is back (hub-2, hub-3)";
        assert_eq!(found(&[true, false, false]), (Level::Fail, two.to_owned()));
        let all = "three of three are away: nothing is stored until two are back (hub-1, hub-2, hub-3)";
        assert_eq!(found(&[false, false, false]), (Level::Fail, all.to_owned()));
        home.up = None;
        assert_eq!(presence(&[false, false, false]).finding(&home).level, Level::Skip);
    }

    #[test]
    fn only_servers_that_are_there_are_asked() {
        let urls = || ["tls://localhost:4001", "tls://localhost:4002"].map(str::to_owned).to_vec();
        assert_eq!(presence(&[false, true]).reachable(urls()), ["tls://localhost:4002"]);
        assert_eq!(presence(&[false, false]).reachable(urls()), urls());
        assert_eq!(presence(&[true, false, true]).there(), 2);
    }

    #[tokio::test]
    async fn a_server_greets_and_whoever_says_something_else_or_nothing_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            for greeting in ["INFO {}\r\n", "SSH-2.0\r\n", ""] {
                listener.accept().await.unwrap().0.write_all(greeting.as_bytes()).await.unwrap();
            }
            listener
        });
        assert_eq!([greets(&address).await, greets(&address).await, greets(&address).await], [true, false, false]);
        // It takes connections and never says a word.
        let silent = server.await.unwrap();
        tokio::time::pause();
        assert!(!greets(&address).await);
        drop(silent);
        assert!(!greets(&address).await, "nobody listens");
    }
}
