//! The words that a report may show. Whatever else an answer says is replaced by its length. Pure.
//!
//! Readers need the words of refusals, of PHP's notices and of error pages. They do not need names, addresses, numbers,
//! tokens or tasks, so these are replaced in every encoding.

use std::collections::HashSet;

use crate::visible::is_hidden;

/// The longest number that is shown, such as an HTTP status, in digits.
const DIGITS: usize = 3;

/// The vendor's words, and those of web servers, proxies and TLS, in English and Spanish.
const KNOWN: &str = "
    the of to in some is are was were be been not no and or an for from by on at as with without this that it its you your
    please check enter enters validate valid invalid validation required require requires missing needed parameter
    parameters param params field fields value values name names type types module modules operation operations
    wolkvox wolkvox_activities wolkvox_id wolkvox_owner token tokens limit limits exceed exceeds exceeded simultaneous
    concurrent request requests per second seconds minute minutes hour hours day daily rate quota count counter api apis
    want consult does do did exist exists existing find found record records were create creates created creating
    creation update updated delete deleted insert inserted save saved succesfully successfully successful success
    error errors warning notice deprecated fatal exception uncaught null none undefined unknown unauthorized forbidden
    bad gateway timeout timed out internal server servers service unavailable temporarily temporary maintenance moved
    permanently redirect too many much large long entity payload uri url method methods allowed allow only access denied
    permission permissions user users session expired expires ip address addresses blocked block list host hosts hostname
    connection connections connect refused reset reach reached closed close keep alive peer network unreachable dns lookup resolve
    resolved resolution tls ssl certificate certificates issuer self signed proxy proxies tunnel authentication
    authorization header headers content length encoding json xml html htm text plain application charset utf unicode
    ascii date dates time zone format must should can cannot could may number numeric string boolean array object empty
    key keys column columns row rows table query queries result results data database sql mysql php line file files path
    document root off index offset variable property stack trace access again try retry later contact support
    administrator page pages website site web status state code codes message messages response responses answer id ids
    http https get post put head options patch activity activities task tasks case cases lead leads opportunity
    opportunities collection collections contacts owner completion completion_date reminder reminder_date description
    priority remember high normal low status name_module id_record custom insert_php www var usr lib local com
    nginx apache litespeed openresty iis cloudflare cloudfront akamai varnish squid haproxy envoy traefik ubuntu debian
    centos unix linux openssl powered via cache control store revalidate private public age max miss hit pragma vary
    accept origin credentials transfer chunked gzip deflate br identity etag strict transport security frame sameorigin
    nosniff deny bytes byte body end ended before after while during first last already other another
    different same such more than least most one two than when where which who what why how if then else there here has
    have had will would been being get got gets set sets send sent sending receive received available currently
    problem problems wrong right correct incorrect mismatch match matches matching duplicate duplicated multiple single
    failed failure fails fail success ok okay yes true false disabled enabled disable enable active inactive suspended
    overloaded busy capacity down up over under between against within inside outside look seems sorry occurred
    encountered unable perform complete completed process processed processing condition unexpected expected syntax
    understand understood supported support unsupported reference resource resources requested located
    configuration configured configure default version protocol port ray performance firewall security rule rules
    el la los las un una de del al en es son no se que por para con sin este esta estos estas su sus usted favor
    verifique valide ingrese token operacion operación modulo módulo modulos módulos campo campos requerido requeridos
    requerida requeridas obligatorio obligatorios obligatoria falta faltan parametro parámetro parametros parámetros
    valor valores invalido inválido invalida inválida invalidos inválidos registro registros encontrado encontrados
    encontro encontró encontraron existe existen creado creada crear actualizado eliminado exitosamente correctamente
    exitoso exito éxito errores limite límite excedido excedida excede peticion petición peticiones solicitud solicitudes
    creacion creación modificacion modificación actualizacion actualización usuario fin inicio simultaneas simultáneas permitido permitida permitidos permiso permisos acceso denegado prohibido servidor
    mantenimiento intente nuevamente intentelo inténtelo mas más tarde usuario sesion sesión dato datos consulta
    direccion dirección autorizado autorizada vacio vacío fecha formato incorrecto incorrecta tarea tareas actividad
    actividades propietario prioridad estado nombre
    html head title meta body center div span br hr strong pre code style script class href src rel link lang doctype
    public dtd en es www w3 org xhtml h1 h2 h3 ul ol li table tr td th font img alt width height viewport device scale
    initial stylesheet css equiv http_proxy https_proxy all_proxy information service known failure handshake eof verify chain pipe broken cookie password bearer basic realm forwarded real client original trace debug amz cf v1 v2 v3 phpsessid
";
/// Members of the vendor's answers, which are shown whatever the operation is called.
const MEMBERS: [&str; 24] = [
    "code",
    "error",
    "msg",
    "data",
    "fields",
    "wolkvox_id",
    "wolkvox_fecha_creacion",
    "description",
    "token_limit",
    "token_use_today",
    "available_consumition_options",
    "hours_to_restart_count",
    "name",
    "name_module",
    "status",
    "priority",
    "completion_date",
    "remember",
    "reminder_date",
    "id_record",
    "wolkvox_owner",
    "module",
    "type",
    "operation",
];
/// The modules that the vendor's pages name.
pub(super) const MODULES: [&str; 5] = ["cases", "contacts", "leads", "opportunities", "collections"];

/// Replaces unknown words by their length.
pub(super) struct Words {
    known: HashSet<&'static str>,
    /// Values that have a placeholder: the value in lower case, and its placeholder.
    own: Vec<(String, &'static str)>,
}

impl Words {
    /// `own` are the values that have a placeholder. If one of them, or a secret, equals a known word, that word is not
    /// shown any more.
    pub(super) fn new<'a>(own: Vec<(String, &'static str)>, secrets: impl Iterator<Item = &'a str>) -> Self {
        let own = own.into_iter().map(|(value, placeholder)| (value.to_lowercase(), placeholder));
        let own: Vec<_> = own.filter(|(value, _)| !value.is_empty()).collect();
        let mut known: HashSet<&'static str> = KNOWN.split_whitespace().collect();
        for (value, _) in &own {
            known.remove(value.as_str());
        }
        for secret in secrets {
            known.remove(secret);
        }
        Self { known, own }
    }

    /// Whether every part of a name is known, so that it can be shown.
    pub(super) fn knows_name(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let is_plain = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let is_vendors = MEMBERS.contains(&name.as_str()) || name.starts_with("hours_to_re");
        is_plain && (is_vendors || name.split('_').all(|part| self.known.contains(part)))
    }

    /// The name of a header with its known words.
    pub(super) fn mask_header(&self, name: &str) -> String {
        let known = |part: &&str| *part == "x" || self.known.contains(part);
        let parts = name.split('-').map(|part| match Some(part).filter(known) {
            Some(part) => part.to_owned(),
            None => format!("[{} characters]", part.chars().count()),
        });
        parts.collect::<Vec<_>>().join("-")
    }

    /// The placeholder of a value; none if it has none.
    pub(super) fn placeholder(&self, value: &str) -> Option<&'static str> {
        let value = value.to_lowercase();
        self.own.iter().find(|(own, _)| *own == value).map(|(_, placeholder)| *placeholder)
    }

    /// A text with its known words. Each other one is replaced by its length.
    pub(super) fn mask(&self, text: &str, labels: &[&str]) -> String {
        let mut shown = String::with_capacity(text.len());
        let mut rest = text;
        let mut before = None;
        while let Some(first) = rest.chars().next() {
            let label =
                labels.iter().chain(self.own.iter().map(|(_, label)| label)).find(|label| rest.starts_with(**label));
            let own = self.own_at(rest).filter(|_| before.is_none_or(|c| !is_word(c)));
            let (length, replaced) = if let Some(label) = label {
                (label.len(), (*label).to_owned())
            } else if let Some((length, placeholder)) = own {
                (length, placeholder.to_owned())
            } else if first.is_ascii_digit() && before.is_none_or(|c| !is_word(c)) && !is_mixed(rest) {
                self.number(rest)
            } else if is_word(first) {
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                let is_tag = shown.ends_with('<') || shown.ends_with("</");
                (length, self.word(rest.get(..length).unwrap_or_default(), is_tag))
            } else {
                (first.len_utf8(), first.to_string())
            };
            shown.push_str(&replaced);
            before = rest.get(..length).and_then(|done| done.chars().next_back());
            rest = rest.get(length..).unwrap_or_default();
        }
        shown
    }

    /// If the text begins with a value that has a placeholder: the value's length and the placeholder. The beginning of a
    /// longer word does not count.
    fn own_at(&self, text: &str) -> Option<(usize, &'static str)> {
        self.own.iter().find_map(|(own, placeholder)| {
            let mut at = 0;
            let mut characters = text.chars();
            for wanted in own.chars() {
                let c = characters.next()?;
                if c.to_lowercase().next()? != wanted {
                    return None;
                }
                at += c.len_utf8();
            }
            characters.next().is_none_or(|c| !is_word(c)).then_some((at, *placeholder))
        })
    }

    fn word(&self, word: &str, is_tag: bool) -> String {
        // UTF-16 that is read as UTF-8 has one word for each character.
        let is_known = match word.len() {
            1 => is_tag && word.is_ascii(),
            _ => self.known.contains(word.to_lowercase().as_str()),
        };
        if is_known { word.to_owned() } else { format!("[{} characters]", word.chars().count()) }
    }

    /// A number with the separators in it: its length, and how it is shown.
    fn number(&self, text: &str) -> (usize, String) {
        let mut end = 0;
        let mut digits = 0;
        for (at, c) in text.char_indices() {
            if c.is_ascii_digit() {
                digits += 1;
                end = at + 1;
            } else if is_word(c) {
                break;
            }
        }
        let number = text.get(..end).unwrap_or_default();
        let is_own = number.split(|c: char| !c.is_ascii_digit()).any(|part| self.placeholder(part).is_some());
        let shown = if digits <= DIGITS && !is_own { number.to_owned() } else { format!("[{digits} digits]") };
        (end, shown)
    }
}

/// Whether a word that begins with a digit has other characters, too.
fn is_mixed(text: &str) -> bool {
    text.chars().take_while(|c| is_word(*c)).any(|c| !c.is_ascii_digit())
}

/// Part of a word, in plain text or in some encoding.
fn is_word(c: char) -> bool {
    matches!(c, '_' | '%' | '#' | '&' | '\\')
        || c.is_ascii_alphanumeric()
        || (!c.is_ascii() && !c.is_whitespace())
        || (is_hidden(c) && !c.is_whitespace())
}
