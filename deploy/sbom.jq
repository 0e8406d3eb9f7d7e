# Turns what deploy/sbom has gathered into a document of CycloneDX 1.5. The input is that of `cargo metadata`.

def lines: split("\n") | map(select(. != "") | split("\t"));
# crates.io still has packages that write OR as a slash.
def licences: if . == null then [] else [{expression: gsub(" */ *"; " OR ")}] end;
def purl: "pkg:cargo/" + (gsub("\\+"; "%2B"));

([.packages[] | {key: "\(.name)@\(.version)", value: .}] | from_entries) as $packages
| ($checksums | lines | map({key: .[0], value: .[1]}) | from_entries) as $checksums
| ($distribution | split("-")[0]) as $vendor
# Each line of the tree depends on the last one before it that is one less deep.
| (reduce ($tree | lines[]) as [$depth, $name] ({path: [], edges: {}};
    .path = .path[0:($depth | tonumber)] + [$name]
    | .edges[$name] //= {}
    | if (.path | length) > 1 then .edges[.path[-2]][$name] = true else . end
  ) | .edges) as $edges
| ($tree | lines[0][1]) as $root
| ($libraries | lines | map({
    type: "library",
    "bom-ref": "pkg:deb/\($vendor)/\(.[0])@\(.[1] | @uri)?arch=\(.[2])&distro=\($distribution)",
    name: .[0],
    version: .[1],
    licenses: (.[3] | licences),
    purl: "pkg:deb/\($vendor)/\(.[0])@\(.[1] | @uri)?arch=\(.[2])&distro=\($distribution)",
    externalReferences: [{type: "website", url: .[4]}]
  }) | unique_by(.purl)) as $libraries
| {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      timestamp: $timestamp,
      component: ($packages[$root] | {
        type: "application",
        "bom-ref": ($root | purl),
        name,
        version,
        description,
        licenses: (.license | licences),
        purl: ($root | purl)
      })
    },
    components: ([$edges | keys[] | select(. != $root) | . as $id | $packages[$id] | {
        type: "library",
        "bom-ref": ($id | purl),
        name,
        version,
        licenses: (.license | licences),
        hashes: [{alg: "SHA-256", content: $checksums[$id]}],
        purl: ($id | purl),
        externalReferences: [.repository | select(. != null) | {type: "vcs", url: .}]
      }] + $libraries),
    dependencies: (([$edges | to_entries[] | {
        ref: (.key | purl),
        dependsOn: ([.value | keys[] | purl] + (if .key == $root then $libraries | map(.purl) else [] end))
      }]) + ($libraries | map({ref: .purl, dependsOn: []})))
  }
