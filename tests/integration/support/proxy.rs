//! A TCP proxy between the worker and a server. It can hold back data and break connections.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// A running proxy. Dropping it ends its connections.
pub(crate) struct Proxy {
    /// The server's address, through the proxy.
    pub(crate) url: String,
    state: watch::Sender<State>,
    _accepting: JoinSet<()>,
}

/// What the proxy does, and how often it was cut: so a connection also notices a cut that is already over.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    mode: Mode,
    cuts: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections stay open and accept data; nothing arrives.
    Held,
    /// As `Open`, but frames about queues and messages do not reach the server: as with a node that has lost its peers.
    Deaf,
    /// Connections end, and each new one ends at once.
    Cut,
    /// The connections to the server end. Those of the clients stay open without an answer.
    Severed,
}

impl Proxy {
    /// Starts a proxy in front of the server of `url`.
    pub(crate) async fn start(url: &str) -> Self {
        let mut url = Url::parse(url).expect("an address");
        let host = url.host_str().expect("a host");
        let server = format!("{host}:{}", url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let state = watch::Sender::new(State { mode: Mode::Open, cuts: 0 });
        let mut accepting = JoinSet::new();
        let amqp = url.scheme() == "amqp";
        accepting.spawn(accept(listener, server, amqp, state.subscribe()));
        Self { url: url.into(), state, _accepting: accepting }
    }

    fn set(&self, mode: Mode) {
        let cut = u64::from(mode == Mode::Cut);
        self.state.send_modify(|state| *state = State { mode, cuts: state.cuts + cut });
    }

    /// From now on nothing arrives, in both directions.
    pub(crate) fn hold(&self) {
        self.set(Mode::Held);
    }

    /// From now on an AMQP client can connect and open channels, but no frame about queues and messages reaches the server.
    pub(crate) fn deafen(&self) {
        self.set(Mode::Deaf);
    }

    /// Ends every connection, discards what was held back, and refuses new connections.
    pub(crate) fn cut(&self) {
        self.set(Mode::Cut);
    }

    /// Ends every connection to the server. The clients notice nothing.
    pub(crate) fn sever(&self) {
        self.set(Mode::Severed);
    }

    /// From now on everything arrives again.
    pub(crate) fn open(&self) {
        self.set(Mode::Open);
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
    if begun.mode == Mode::Cut {
        return;
    }
    tokio::select! {
        biased;
        _ = ends.wait_for(|now| now.cuts > begun.cuts || now.mode == Mode::Severed) => {}
        () = both_ways(&mut client, &server, amqp, &state) => return,
    }
    let _ = ends.wait_for(|now| now.cuts > begun.cuts || now.mode != Mode::Severed).await;
}

/// Forwards data in both directions until one end closes. Then both are closed.
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
        let open = state.wait_for(|now| matches!(now.mode, Mode::Open | Mode::Deaf)).await.is_ok();
        if !open || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Forwards the data of an AMQP 0-9-1 client: a header of eight bytes, then frames. A frame has a type, a channel, a length, its
/// payload, and an end byte.
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
        let mode = state.wait_for(|now| matches!(now.mode, Mode::Open | Mode::Deaf)).await.map(|now| now.mode);
        let Ok(mode) = mode else { return Ok(()) };
        if mode == Mode::Open || !is_work(&frame) {
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
