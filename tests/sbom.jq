# What weir is made of, as CycloneDX: make sbom.
# In: `cargo metadata` of one platform. Out: the packages that are linked into the binary, build scripts and tests aside.
def linked: [.deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg];
def reach($nodes; $seen; $next):
  if ($next | length) == 0 then $seen
  else (($next | map($nodes[.] | linked) | add // [] | unique) - $seen - $next) as $new
    | reach($nodes; $seen + $next; $new) end;
def purl: "pkg:cargo/\(.name)@\(.version | gsub("\\+"; "%2B"))";
(.resolve.nodes | map({key: .id, value: .}) | from_entries) as $nodes
| (.packages | map({key: .id, value: .}) | from_entries) as $packages
| (.packages[] | select(.name == "weir" and .source == null)) as $weir
| (reach($nodes; []; [$weir.id]) - [$weir.id]) as $ids
| {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      component: {
        type: "application", "bom-ref": ($weir | purl), name: $weir.name, version: $weir.version, purl: ($weir | purl),
        licenses: [{expression: $weir.license}]
      }
    },
    components: ($ids | map($packages[.]) | sort_by(.name, .version) | map({
      type: "library", "bom-ref": purl, name, version, purl: purl,
      licenses: [{expression: (.license // "" | gsub("/"; " OR "))}]
    })),
    dependencies: ([$weir.id] + $ids | map($nodes[.] | {
      ref: ($packages[.id] | purl), dependsOn: (linked | map($packages[.] | purl) | unique)
    }) | sort_by(.ref))
  }
