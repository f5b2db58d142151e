#!/bin/sh
# Prints the image's bill of materials (CycloneDX 1.5): the crates of the program, and Debian's packages.
# Usage: sbom.sh VERSION CRATES STATUS
#   CRATES  a file with a line `name vVERSION` for each crate
#   STATUS  a folder with the control file of each package
set -eu
version=$1 crates=$2 status=$3

component() { printf '{"type":"library","name":"%s","version":"%s","purl":"%s"}\n' "$1" "$2" "$3"; }
field() { sed -n "s/^$1: //p" "$2"; }

{
    while read -r name crate_version; do
        if [ "$name" = wolkvox-task-worker ]; then continue; fi
        component "$name" "${crate_version#v}" "pkg:cargo/$name@${crate_version#v}"
    done <"$crates"
    for package in "$status"/*; do
        name=$(field Package "$package") package_version=$(field Version "$package")
        # Escaped as the purl specification requires for versions.
        escaped=$(printf %s "$package_version" | sed 's/+/%2B/g; s/:/%3A/g')
        component "$name" "$package_version" "pkg:deb/debian/$name@$escaped?arch=$(field Architecture "$package")"
    done
} | sort | awk -v version="$version" '
    BEGIN {
        printf "{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.5\",\"version\":1,\"metadata\":{\"component\":"
        printf "{\"type\":\"container\",\"name\":\"wolkvox-task-worker\",\"version\":\"%s\"}},\"components\":[\n", version
    }
    { printf "%s%s", (NR > 1 ? ",\n" : ""), $0 }
    END { print "\n]}" }
'
