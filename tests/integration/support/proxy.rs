//! A TCP proxy between the worker and a server, that can hold back what travels and cut connections.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// A running proxy; its connections end with it.
pub(crate) struct Proxy {
    /// The server's address, through the proxy.
    pub(crate) url: String,
    state: watch::Sender<State>,
    _accepting: JoinSet<()>,
}

/// What the line does, and how often it was cut: a cut that is over already ends a connection all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    line: Line,
    cuts: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    /// Connections stay and take what is written to them; nothing arrives.
    Held,
    /// As open, but that the server never hears of queues and messages: as a node does that is without the others.
    Deaf,
    /// Connections end, and new ones at once.
    Cut,
    /// The server's ends of the connections end; the others stay, and nobody answers.
    Severed,
}

impl Proxy {
    /// A proxy before the server of `url`.
    pub(crate) async fn start(url: &str) -> Self {
        let mut url = Url::parse(url).expect("an address");
        let host = url.host_str().expect("a host");
        let server = format!("{host}:{}", url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let state = watch::Sender::new(State { line: Line::Open, cuts: 0 });
        let mut accepting = JoinSet::new();
        let amqp = url.scheme() == "amqp";
        accepting.spawn(accept(listener, server, amqp, state.subscribe()));
        Self { url: url.into(), state, _accepting: accepting }
    }

    fn set(&self, line: Line) {
        let cut = u64::from(line == Line::Cut);
        self.state.send_modify(|state| *state = State { line, cuts: state.cuts + cut });
    }

    /// Nothing arrives any more, in either direction.
    pub(crate) fn hold(&self) {
        self.set(Line::Held);
    }

    /// Lets a client of AMQP connect and open channels, and carries nothing about queues and messages to the server.
    pub(crate) fn deafen(&self) {
        self.set(Line::Deaf);
    }

    /// Ends every connection, with what was held back, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.set(Line::Cut);
    }

    /// Ends every connection as the server sees it, while those who made them hear nothing.
    pub(crate) fn sever(&self) {
        self.set(Line::Severed);
    }

    /// Everything arrives again.
    pub(crate) fn open(&self) {
        self.set(Line::Open);
    }
}

async fn accept(listener: TcpListener, server: String, amqp: bool, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        connections.spawn(connect(client, server.clone(), amqp, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(mut client: TcpStream, server: String, amqp: bool, state: watch::Receiver<State>) {
    let mut ends = state.clone();
    let begun = *ends.borrow();
    if begun.line == Line::Cut {
        return;
    }
    tokio::select! {
        biased;
        _ = ends.wait_for(|now| now.cuts > begun.cuts || now.line == Line::Severed) => {}
        () = both_ways(&mut client, &server, amqp, &state) => return,
    }
    let _ = ends.wait_for(|now| now.cuts > begun.cuts || now.line != Line::Severed).await;
}

/// Carries until either end closes, which is the end of both, as with a broker's or a worker's death.
async fn both_ways(client: &mut TcpStream, server: &str, amqp: bool, state: &watch::Receiver<State>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let to_server = async {
        match amqp {
            true => drop(carry_frames(from_client, to_server, state.clone()).await),
            false => carry(from_client, to_server, state.clone()).await,
        }
    };
    tokio::select! {
        () = to_server => {}
        () = carry(from_server, to_client, state.clone()) => {}
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let open = state.wait_for(|now| matches!(now.line, Line::Open | Line::Deaf)).await.is_ok();
        if !open || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Carries what a client of AMQP 0-9-1 says: a greeting of eight bytes, then frames, each of which has a type, a channel, a
/// length, and an end of one byte.
async fn carry_frames(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    const GREETING: usize = 8;
    const HEAD: usize = 7;
    let mut from = BufReader::new(from);
    let mut frame = vec![0; GREETING];
    from.read_exact(&mut frame).await?;
    loop {
        let line = state.wait_for(|now| matches!(now.line, Line::Open | Line::Deaf)).await.map(|now| now.line);
        let Ok(line) = line else { return Ok(()) };
        if line == Line::Open || !is_work(&frame) {
            to.write_all(&frame).await?;
        }
        frame.resize(HEAD, 0);
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]);
        frame.resize(HEAD + usize::try_from(length).expect("a length") + 1, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
    }
}

/// Whether a frame is about queues or messages: a method of those classes, or a message's header or body.
fn is_work(frame: &[u8]) -> bool {
    const QUEUE: u8 = 50;
    const BASIC: u8 = 60;
    match frame {
        [1, _, _, _, _, _, _, 0, class, ..] => [QUEUE, BASIC].contains(class),
        [2 | 3, ..] => true,
        _ => false,
    }
}
