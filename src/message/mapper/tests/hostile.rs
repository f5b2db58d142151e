use super::*;

#[test]
fn explore() {
    let body = r#"{"n": 2, "t": "SECRET", "z": 0, "big": 18446744073709551616, "neg": -9223372036854775809, "huge": 1e308, "a": 10.00, "b": 10.0, "list": [3, null, "SECRET"], "o": {"k": "v"}, "u": "\u0000\u202e", "long": "aaaaaaaaaaaaaaaaaaaa", "nested": {"a": {"b": {"c": [1, {"d": 5}]}}}, "e": "", "sp": "   ", "d": "2027-03-28T02:30:00", "dup": 1, "dup": 2, "f": 0.1, "min": 5e-324}"#;
    let neg = format!("{{{{ {}body.t }}}}", "-".repeat(3_900));
    let nots = format!("{{{{ {}body.nope }}}}", "not ".repeat(1_000));
    let plus = format!("{{{{ body.nope{} }}}}", "+body.nope".repeat(350));
    let pars = format!("{{{{ {}body.nope{} }}}}", "(".repeat(140), ")".repeat(140));
    let pipes = format!("{{{{ body.nope{} }}}}", "|d".repeat(1_900));
    let dots = format!("{{{{ body{} }}}}", ".a".repeat(2_000));
    for template in [
        "{{ body.big + 1 }}", "{{ body.big }}", "{{ body.neg }}", "{{ body.huge * 10 }}", "{{ body.a }} {{ body.b }}", "{{ body.f + 0.2 }}",
        "{{ body.min }}", "{{ body.n / body.z }}", "{{ body.n % body.z }}", "{{ body.n // body.z }}", "{{ 9223372036854775807 + 1 }}", "{{ 170141183460469231731687303715884105727 + 1 }}",
        "{{ body.list | sum }}", "{{ body.list | sort | join }}", "{{ body.list | join(',') }}", "{{ body.list[1] }}", "{{ body.list | max }}", "{{ body.list | first }}", "{{ body.list | last | upper }}",
        "{{ body.u }}", "{{ body.long | truncate(0) }}", "{{ body.long | truncate(-1) }}", "{{ body.long | truncate('x') }}", "{{ body.t | truncate(99999999999999999999) }}",
        "{{ body.nested.a.b.c[1].d }}", "{{ body.nested.a.b.c[-1].d }}", "{{ body.nested.a.b.c['d'] }}", "{{ body.nested['a']['x'] }}", "{{ body.nested.a.b.c[body.n] }}",
        "{{ body.e }}", "{{ body.sp }}", "{{ body.d | datetime }}", "{{ body.d | datetime(timezone='Europe/Madrid') }}", "{{ body.dup }}",
        "{{ '2027-02-29' | datetime }}", "{{ '2028-02-29' | datetime | add('1y') }}", "{{ '2027-12-31T23:59:60Z' | datetime }}", "{{ '0000-01-01' | datetime }}", "{{ '9999-12-31' | add('1d') }}", "{{ '99999-01-01' | datetime }}", "{{ '-000001-01-01' | datetime }}", "{{ '2027-01-01T00:00:00+99:00' | datetime }}", "{{ '2027-01-01T00:00:00[Europe/Madrid]' | datetime }}", "{{ '2027-01-01T00:00:00+05:00[Europe/Madrid]' | datetime }}",
        "{{ '31/04/2027' | datetime('%d/%m/%Y') }}", "{{ '1/1/27' | datetime('%d/%m/%y') }}", "{{ 'x' | datetime('%Q') }}", "{{ 1e12 | datetime }}", "{{ 1e18 | datetime }}", "{{ body.huge | datetime }}", "{{ '1e3' | datetime(unit='s') }}", "{{ 'nan' | datetime(unit='s') }}", "{{ 'inf' | datetime(unit='ms') }}", "{{ body.n | datetime('%Y') }}",
        "{{ now | add('') }}", "{{ now | add('1d -3h') }}", "{{ now | add('999999999h') }}", "{{ now | add_business_days(-3650) }}", "{{ now | add_business_days(1.5) }}", "{{ now | add_business_days('2') }}", "{{ now | at('24:00') }}", "{{ now | at('9:00') }}", "{{ now | format('%') }}", "{{ now | format('') }}", "{{ now | format('%Z %z %s %f') }}",
        "{{ now.year }}", "{{ now.nope }}", "{{ now + 1 }}", "{{ now ~ '' }}", "{{ now == now }}", "{{ [now] }}", "{{ now | upper }}",
        "{{ body | length }}", "{{ body }}", "{{ headers }}", "{{ properties }}", "{{ body | items | list | length }}", "{{ body | dictsort | first }}",
        "{% for k in body %}{{ body[k] }}{% endfor %}", "{% for k, v in body | items %}{{ k }}{% endfor %}", "{% set x = body.nope %}{{ x }}", "{% set x = body.nope %}x", "{% if body.nope == 1 %}a{% endif %}", "{% if body.nope %}a{% else %}b{% endif %}", "{% for x in body.nope %}a{% endfor %}", "{% for x in body.n %}a{% endfor %}", "{% set body = 1 %}{{ body.n }}", "{{ 'high' if body.t < 3 else 'normal' }}", "{{ body.t == 2 }}", "{% do namespace() %}", "{{ namespace() }}", "{{ dict(a=1) }}", "{{ range(3) }}", "{{ range(3) | join }}", "{% raw %}{{ x }}{% endraw %}", "{# comment #}", "{{ body.get }}", "{{ body.get() }}", "{{ body.get(1,2,3) }}", "{{ body['get'] }}", "{{ body.items }}", "{{ body[none] }}", "{{ body[[1]] }}", "{{ body[1.5] }}", "{{ true }}", "{{ none }}", "{{ [] }}", "{{ {} }}", "{{ '' }}", "{{ 'a' 'b' }}", "{{ body.t[0] }}", "{{ body.t[0:3] }}", "{{ body.t[::-1] }}", "{{ body.t[::0] }}", "{{ body.list[0:9999999999] | join }}", "{{ body.t | replace('', '') }}", "{{ body.t | regex_replace('', 'x') }}", "{{ body.t | regex_replace('(a*)*b', '$1') }}", "{{ body.t | regex_replace('S', '$9${x}$$') }}", "{{ body.t | split('') | join('-') }}", "{{ body.t | map('upper') | join }}", "{{ [1,2] | map('nope') | list | join }}", "{{ body.o | map(attribute='x') | join }}", "{{ body.list | groupby('x') | list | length }}", "{{ body.list | select('nope') | list | length }}", "{{ body.list | selectattr('k') | list | length }}", "{{ body.n | round(400) }}", "{{ body.n | round(-400) }}", "{{ 2 ** 64 }}", "{{ 2 ** -1 }}", "{{ body.t | indent(5) }}", "{{ '%s' | format('x') }}", "{{ body.t | default }}", "{{ body.nope | default(body.nope2) }}", "{{ body.nope.x | default('d') }}", "{{ self }}", "{{ loop }}", "{{ super() }}", "{{ caller() }}", "{{ varargs }}", "{{ ' spellings' }}", "{{ body.t is startingwith 'S' }}", "{{ body.t is nope }}", "{{ body.n is divisibleby(0) }}", "{{ body.t in body.n }}", "{{ 1 if false }}",
        &neg, &nots, &plus, &pars, &pipes, &dots,
    ] {
        let shown = if template.len() > 80 { &template[..80] } else { template };
        let text = format!("[crm]\ntimezone = \"America/Bogota\"\n{}", rule("", &format!("description = {template:?}")));
        let began = std::time::Instant::now();
        let result = match config(&text).and_then(|config| Mapper::new(&config)) {
            Err(problems) => format!("PROBLEM {}", problems.to_string().lines().skip(1).collect::<String>().split("): ").last().unwrap_or_default()),
            Ok(mapper) => match map(&mapper, event(body)) {
                Ok(Mapped::Send { body, .. }) => format!("OK {:?}", fields_of(&body).get("description")),
                other => format!("{:?}", other.map_err(|f| f.message)),
            },
        };
        println!("{shown:60} -> {} [{} ms]", &result[..result.floor_char_boundary(260)], began.elapsed().as_millis());
    }
}
