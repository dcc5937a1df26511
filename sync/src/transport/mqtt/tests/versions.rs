//! Brokers of several versions and settings, and what they say of it.

use super::*;

/// A broker of old in front of a new one: it does not let version 5 in, and says so, or nothing at all.
async fn old_broker(behind: u16, says: &'static [u8]) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 9];
                client.read_exact(&mut head).await.unwrap();
                if head.contains(&5) {
                    client.write_all(says).await.unwrap();
                    return;
                }
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                server.write_all(&head).await.unwrap();
                // Until one of them goes.
                tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop).unwrap_or_default();
            });
        }
    });
    port
}

/// A client that wants next to nothing of a broker.
fn alone(broker: &BrokerUrl) -> client::Joining<'_> {
    client::Joining {
        broker,
        client_id: "one".to_owned(),
        own: None,
        will: Publish { topic: "gone".to_owned(), payload: Bytes::new(), keep: Keep::No },
        news: None,
        filters: vec![Filter::plain("x".to_owned())],
        queue_len: 1,
    }
}

#[tokio::test]
async fn the_newest_version_that_both_speak_is_chosen() {
    let Some(broker) = Broker::start(Version::V5) else { return };
    let site = Site::new();
    let joined = async |port: u16| {
        let url = BrokerUrl::parse(&format!("mqtt://127.0.0.1:{port}")).unwrap();
        client::join(&alone(&url)).await.map(|(_, connection)| connection.version())
    };
    assert_eq!(joined(broker.port).await.unwrap(), Version::V5);
    for says in [&b"\x20\x02\0\x01"[..], b"\x20\x03\0\x84\0", b""] {
        let old = old_broker(broker.port, says).await;
        assert_eq!(joined(old).await.unwrap(), Version::V311, "{says:?}");
        // A device that speaks 3.1.1 and a hub that speaks 5 meet in the middle.
        let listener = Listener::mqtt(broker.url(), &site.door);
        let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
        let serving = serve(listener, &site, admits);
        let target = Target::Mqtt(BrokerUrl::parse(&format!("mqtt://127.0.0.1:{old}")).unwrap());
        check_echo(&mut connect_when_open(&site.connector("edge-1"), &target).await, "edge-1", 10_000).await;
        serving.abort();
    }
    let refusing = old_broker(broker.port, b"\x20\x08\0\x87\x05\x1f\0\x02no").await;
    let error = joined(refusing).await.unwrap_err();
    assert_eq!(error.to_string(), "the broker refuses this client: not authorized (no)");
}

/// Not every broker says it: mosquitto 2.0 just closes.
#[tokio::test]
async fn a_broker_of_version_5_says_why_it_ends_a_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = BrokerUrl::parse(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap();
    let serving = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(b"\x20\x03\0\0\0\x90\x04\0\x01\0\0\xe0\x01\x8e").await.unwrap();
        // Until the client has gone.
        client.read_to_end(&mut Vec::new()).await.unwrap_or_default();
    });
    let (_client, mut connection) = client::join(&alone(&url)).await.unwrap();
    let error = connection.next().await.unwrap_err().to_string();
    assert!(error.contains("two devices with one identity?"), "{error}");
    drop(connection);
    serving.await.unwrap();
}

#[tokio::test]
async fn brokers_are_reached_with_tls_and_a_login() {
    if !Broker::is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let authority = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    std::fs::write(path("leaf.pem"), leaf.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let made = Command::new("mosquitto_passwd").args(["-b", "-c", &path("logins"), "user", "secret"]).status();
    let (login, settings) = match made {
        Ok(status) if status.success() => ("user:secret@", format!("password_file {}\n", path("logins"))),
        _ => ("", "allow_anonymous true\n".to_owned()),
    };
    let settings = format!("{settings}certfile {}\nkeyfile {}\n", path("leaf.pem"), path("key.pem"));
    let port = free_port();
    let _broker = Broker::start_with(port, Version::V5, &settings);
    let pin = crate::identity::hex(&crate::identity::pin_of(leaf.der()));
    let url = |rest: &str| BrokerUrl::parse(&format!("mqtts://{login}localhost:{port}{rest}")).unwrap();

    let site = Site::new();
    let listener = Listener::mqtt(url(&format!("?ca={}", path("ca.pem"))), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let connector = site.connector("edge-1");
    let target = Target::Mqtt(url(&format!("?version=3.1.1&pin={pin}")));
    check_echo(&mut connect_when_open(&connector, &target).await, "edge-1", 200_000).await;
    for (rest, part) in [
        (format!("?pin={}", "00".repeat(32)), "no TLS connection to the broker"),
        (format!("?ca={}", path("absent.pem")), "cannot read the authorities"),
        (format!("?ca={}", path("key.pem")), "no certificate of an authority"),
    ] {
        let error = connector.connect(&Target::Mqtt(url(&rest))).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    if !login.is_empty() {
        let wrong = format!("mqtts://user:wrong@localhost:{port}?pin={pin}");
        let error = connector.connect(&Target::Mqtt(BrokerUrl::parse(&wrong).unwrap())).await.unwrap_err().to_string();
        assert!(error.contains("the broker refuses this client") && !error.contains("wrong@"), "{error}");
    }
    serving.abort();
}
