package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/storaged/storaged"

// buildTags are the tags under which tests of this module hide; with them, every file is seen.
const buildTags = "interop,e2e,netns,chaos,devices,docker,lab,upgrade"

// listed is what `go list` says about one package.
type listed struct {
	ImportPath   string
	Imports      []string // of the package itself
	TestImports  []string // of its _test files, in the package
	XTestImports []string // of its _test files, outside the package
	Deps         []string // everything that the package itself needs, transitively
}

// rule forbids packages to know others. Paths that begin with "./" are relative to the module; "./" alone
// is the root package. A path matches a package and everything below it; with "$" at its end it matches the
// package alone.
type rule struct {
	why     string
	of      []string // packages the rule speaks of
	except  []string // packages below `of` that it does not speak of
	forbid  []string // what they must not import
	allow   []string // what they may import although it lies below `forbid`
	deep    bool     // also not through others
	inTests bool     // also not in their tests
}

// forTests are the packages that serve tests only.
var forTests = []string{"./test", "./bench", "./internal/testcluster", "./internal/simnet", "./internal/history", "./internal/workload", "./internal/lint",
	"./api/apitest", "./api/csi/csitest", "./nbd/nbdtest", "./server/catalog/catalogtest", "./internal/tlsfiles/tlstest"}

var rules = []rule{{
	why: "the vocabulary imports nothing of ours", of: []string{"./$"}, forbid: []string{"./"}, deep: true, inTests: true,
}, {
	why: "hashicorp/raft is known to its runner, to replication and to the catalog's driver only",
	of:  []string{"./"}, except: []string{"./replication$", "./replication/runner", "./server/control"},
	forbid: []string{"github.com/hashicorp/raft"}, inTests: true,
}, {
	why: "raft-boltdb keeps the catalog's log, and no other",
	of:  []string{"./"}, except: []string{"./server/control"}, forbid: []string{"github.com/hashicorp/raft-boltdb"}, inTests: true,
}, {
	why: "go-nbd is known to nbd only (its client is one more peer in the interop tests)",
	of:  []string{"./"}, except: []string{"./nbd", "./test/interop"}, forbid: []string{"github.com/pojntfx/go-nbd"}, inTests: true,
}, {
	why: "segment knows nothing of extents, ops, peers and Raft",
	of:  []string{"./replication/segment"}, forbid: []string{"./", "github.com/hashicorp/raft"},
	allow: []string{"./$", "./replication/segment", "./internal"}, deep: true, inTests: true,
}, {
	why: "diskio knows files and bytes, and of ours what a lack of room is",
	of:  []string{"./internal/diskio"}, forbid: []string{"./"}, allow: []string{"./internal/diskio", "./internal/noroom"}, deep: true, inTests: true,
}, {
	why: "op is pure encoding",
	of:  []string{"./replication/op"}, forbid: []string{"./", "os", "net", "github.com/hashicorp/raft"},
	allow: []string{"./$", "./replication/op"},
}, {
	why: "op is pure encoding", of: []string{"./replication/op"}, forbid: []string{"./"},
	allow: []string{"./$", "./replication/op"}, deep: true,
}, {
	why: "extent knows segments and ops, nothing of Raft, peers, NBD and the server",
	of:  []string{"./replication/extent"}, forbid: []string{"./", "github.com/hashicorp/raft"},
	allow: []string{"./$", "./replication/extent", "./replication/segment", "./replication/op", "./internal"}, deep: true,
}, {
	why: "the tables are values: no database, no lock, no clock, no I/O",
	of:  []string{"./replication/extent/table"},
	forbid: []string{"./", "os", "net", "io", "syscall", "log", "time", "sync", "context", "math/rand", "crypto/rand",
		"github.com/cockroachdb", "github.com/hashicorp", "github.com/prometheus", "golang.org"},
	allow: []string{"./$", "./replication/op", "./replication/segment"}, // of which it takes the names of places only: see impureTables
}, {
	why: "Pebble is known to the tables' database only; others take its file systems",
	of:  []string{"./"}, except: []string{"./replication/extent/tabledb", "./tools"}, forbid: []string{"github.com/cockroachdb/pebble/v2"},
	allow: []string{"github.com/cockroachdb/pebble/v2/vfs"}, inTests: true,
}, {
	why: "the tables' database and the data directory know nothing of what is in them",
	of:  []string{"./replication/extent/tabledb", "./replication/extent/storedir"}, forbid: []string{"./"}, allow: []string{"./$", "./internal"}, deep: true,
}, {
	why: "what gives back space sees the store through small interfaces, and what counts references sees no store at all",
	of:  []string{"./replication/extent/reclaim", "./replication/extent/live"}, forbid: []string{"./"},
	allow: []string{"./$", "./replication/segment", "./replication/op", "./replication/extent/table", "./internal"}, deep: true,
}, {
	why: "what judges the room of a store sees it through interfaces: neither its log nor what is in its tables",
	of:  []string{"./replication/extent/room"}, forbid: []string{"./"},
	allow: []string{"./$", "./replication/extent/compact", "./replication/extent/reclaim", "./replication/extent/tabledb", "./internal"},
}, {
	why: "compaction sees the store through an interface",
	of:  []string{"./replication/extent/compact"}, forbid: []string{"./"},
	allow: []string{"./$", "./replication/segment", "./replication/op", "./replication/extent/table", "./replication/extent/live", "./internal"}, deep: true,
}, {
	why: "the scrub sees the store through an interface",
	of:  []string{"./replication/extent/scrub"}, forbid: []string{"./"},
	allow: []string{"./$", "./replication/segment", "./replication/op", "./replication/extent/table", "./replication/extent/live", "./replication/extent/compact", "./internal"}, deep: true,
}, {
	why: "peer carries frames, whatever is in them",
	of:  []string{"./replication/peer"}, forbid: []string{"./", "github.com/hashicorp/raft"},
	allow: []string{"./$", "./replication/peer", "./internal"}, deep: true,
}, {
	why: "the runner of hashicorp/raft knows nothing of what a group keeps, and of who asks for it",
	of:  []string{"./replication/runner"}, forbid: []string{"./"},
	allow: []string{"./$", "./replication/runner", "./replication/peer", "./replication/op", "./internal"}, deep: true,
}, {
	why: "replication knows nothing of NBD, of the server and of the APIs",
	of:  []string{"./replication"}, forbid: []string{"./nbd", "./gateway", "./server", "./api", "./proto", "./cmd"}, deep: true,
}, {
	why: "nbd knows the vocabulary only",
	of:  []string{"./nbd"}, forbid: []string{"./", "github.com/hashicorp/raft"}, allow: []string{"./$", "./nbd", "./internal"}, deep: true,
}, {
	why: "the gateway knows requests (replication/op), not how they are replicated",
	of:  []string{"./gateway/volume"}, forbid: []string{"./", "github.com/hashicorp/raft"},
	allow: []string{"./$", "./gateway/volume", "./replication/op", "./internal"}, deep: true,
}, {
	why: "what status shows it is told: it knows neither Raft nor disks nor how a node is put together",
	of:  []string{"./server/status", "./server/admin"}, forbid: []string{"./", "github.com/hashicorp", "github.com/cockroachdb", "go.etcd.io"},
	allow: []string{"./$", "./server/status", "./server/admin", "./server/catalog", "./server/placement", "./api$", "./api/apitest", "./proto", "./replication/peer", "./internal"},
	deep:  true, inTests: true,
}, {
	why: "the desk for gateways knows the catalog and its messages, neither Raft nor disks nor how a node is put together",
	of:  []string{"./server/session"}, forbid: []string{"./", "github.com/hashicorp", "github.com/cockroachdb", "go.etcd.io"},
	allow: []string{"./$", "./server/catalog", "./gateway/remote", "./gateway/route", "./gateway/volume", "./replication/op", "./replication/peer", "./api$", "./proto", "./internal"},
	deep:  true, inTests: true,
}, {
	why: "a gateway, also that of a host, speaks to nodes; how they agree and what they keep is no part of it",
	of:  []string{"./gateway"}, except: []string{"./gateway/volume"}, forbid: []string{"./server", "./replication", "github.com/hashicorp/raft", "github.com/hashicorp/raft-boltdb/v2",
		"go.etcd.io/bbolt", "github.com/boltdb/bolt", "github.com/cockroachdb/pebble/v2"},
	allow: []string{"./replication/op", "./replication/peer"}, deep: true, inTests: true,
}, {
	why: "the catalog is pure: state and command to state and effects",
	of:  []string{"./server/catalog"}, except: []string{"./server/catalog/catalogtest"},
	forbid: []string{"./", "os", "net", "io/fs", "syscall", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand",
		"sync", "sync/atomic", "context", "github.com/cockroachdb", "github.com/hashicorp", "github.com/prometheus"},
	allow: []string{"./$", "./server/catalog", "./internal/copies"}, // which is arithmetic
}, {
	why: "the typed client needs no server",
	of:  []string{"./api/client"}, forbid: []string{"./server", "./gateway", "./replication"}, allow: []string{"./replication/op"}, deep: true,
}, {
	why: "storagectl needs no server; it reads copies of the catalog, which is a value",
	of:  []string{"./cmd/storagectl"}, forbid: []string{"./server", "./gateway", "./replication"}, allow: []string{"./replication/op", "./server/catalog$"}, deep: true,
}, {
	why: "transfer moves bytes over NBD, whoever asks for it",
	of:  []string{"./internal/transfer"}, forbid: []string{"./"}, allow: []string{"./$", "./nbd", "./internal"}, deep: true,
}, {
	why: "storagectl builds for machines without Linux, too: what speaks to this kernel is the nodes' and the gateways'",
	of:  []string{"./cmd/storagectl"}, forbid: []string{"./nbd/attach"}, deep: true,
}, {
	why: "what serves the tests stays out of what is shipped",
	of:  []string{"./"}, except: forTests,
	forbid: append([]string{
		"github.com/anishathalye/porcupine", "pgregory.net/rapid", "testing",
		"github.com/kubernetes-csi/csi-test/v5", "github.com/onsi"}, forTests...),
}, {
	why: "go-plugins-helpers is known to the Docker plugin only",
	of:  []string{"./"}, except: []string{"./api/dockerplugin"}, forbid: []string{"github.com/docker"}, inTests: true,
}, {
	why: "the CSI services and the Docker plugin speak to the cluster and to the host's gateway over gRPC, they are none of it",
	of:  []string{"./api/csi", "./api/dockerplugin", "./api/hostfs"}, forbid: []string{"./server", "./gateway", "./replication", "./nbd"}, deep: true,
}, {
	why: "the Docker plugin and the CSI services use a host's file systems (api/hostfs), and not one another",
	of:  []string{"./api/dockerplugin", "./api/hostfs"}, forbid: []string{"./api/csi$", "github.com/container-storage-interface"}, inTests: true,
}, {
	why: "the CSI services and a host's file systems know nothing of Docker", of: []string{"./api/csi", "./api/hostfs"}, forbid: []string{"./api/dockerplugin"}, deep: true, inTests: true,
}, {
	why: "errors are the standard library's and storage.Error", of: []string{"./"}, forbid: []string{"github.com/pkg/errors", "github.com/cockroachdb/errors"}, inTests: true,
}}

// TestImports holds the direction of the imports (docs/architecture.md, "Layout").
func TestImports(t *testing.T) {
	pkgs := list(t)
	for _, r := range rules {
		for _, v := range r.violations(pkgs) {
			t.Errorf("%s\n\trule: %s", v, r.why)
		}
	}
}

// list returns every package of the module.
func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-tags", buildTags,
		"-json=ImportPath,Imports,TestImports,XTestImports,Deps", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list printed something else than JSON: %v", err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no package")
	}
	return pkgs
}

// violations returns one line for each forbidden import.
func (r rule) violations(pkgs []listed) []string {
	var found []string
	for _, p := range pkgs {
		if !matchAny(p.ImportPath, r.of) || matchAny(p.ImportPath, r.except) {
			continue
		}
		report := func(how string, paths []string) {
			for _, path := range paths {
				if path != p.ImportPath && matchAny(path, r.forbid) && !matchAny(path, r.allow) {
					found = append(found, fmt.Sprintf("%s %s %s", p.ImportPath, how, path))
				}
			}
		}
		report("imports", p.Imports)
		if r.deep {
			report("reaches", indirect(p))
		}
		if r.inTests {
			report("imports in its tests", slices.Concat(p.TestImports, p.XTestImports))
		}
	}
	return found
}

// indirect returns what a package needs but does not import itself.
func indirect(p listed) []string {
	return slices.DeleteFunc(slices.Clone(p.Deps), func(d string) bool { return slices.Contains(p.Imports, d) })
}

func matchAny(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pat string) bool { return match(path, pat) })
}

// match says whether a pattern of a rule means the package.
func match(path, pattern string) bool {
	pattern, alone := strings.CutSuffix(pattern, "$")
	if rest, ours := strings.CutPrefix(pattern, "./"); ours {
		pattern = strings.TrimSuffix(module+"/"+rest, "/")
	}
	return path == pattern || !alone && strings.HasPrefix(path, pattern+"/")
}

// TestRulesBite shows the rules one violation each, so that a rule that matches nothing is noticed.
func TestRulesBite(t *testing.T) {
	own := func(rel string) string { return strings.TrimSuffix(module+"/"+rel, "/") }
	for _, tc := range []struct {
		name string
		pkg  listed
		want int // violations over all rules
	}{
		{"root imports ours", listed{ImportPath: own(""), Imports: []string{own("nbd")}}, 1},
		{"root's test imports ours", listed{ImportPath: own(""), TestImports: []string{own("nbd")}}, 1},
		{"raft in replication", listed{ImportPath: own("replication"), Imports: []string{"github.com/hashicorp/raft"}}, 0},
		{"raft in its runner", listed{ImportPath: own("replication/runner"), Imports: []string{"github.com/hashicorp/raft"}}, 0},
		{"raft in route", listed{ImportPath: own("server/route"), Imports: []string{"github.com/hashicorp/raft"}}, 1},
		{"bolt in the runner", listed{ImportPath: own("replication/runner"), Imports: []string{"github.com/hashicorp/raft-boltdb/v2"}}, 1},
		{"extent in the runner", listed{ImportPath: own("replication/runner"), Imports: []string{own("replication/extent")}}, 1},
		{"raft in control", listed{ImportPath: own("server/control"), Imports: []string{"github.com/hashicorp/raft"}}, 0},
		{"raft in cmd", listed{ImportPath: own("cmd/storaged"), Imports: []string{"github.com/hashicorp/raft"}}, 1},
		{"raft through others in cmd", listed{ImportPath: own("cmd/storaged"), Deps: []string{"github.com/hashicorp/raft"}}, 0},
		{"raft in a test of server", listed{ImportPath: own("server"), XTestImports: []string{"github.com/hashicorp/raft"}}, 1},
		{"raft through others in the gateway", listed{ImportPath: own("gateway/volume"), Deps: []string{"github.com/hashicorp/raft"}}, 1},
		{"go-nbd in the server", listed{ImportPath: own("server"), Imports: []string{"github.com/pojntfx/go-nbd/pkg/protocol"}}, 1},
		{"go-nbd in nbd", listed{ImportPath: own("nbd"), Imports: []string{"github.com/pojntfx/go-nbd/pkg/protocol"}}, 0},
		{"extent in segment", listed{ImportPath: own("replication/segment"), Imports: []string{own("replication/extent")}}, 1},
		{"segment in the kernel's I/O", listed{ImportPath: own("internal/diskio"), Imports: []string{own("replication/segment")}}, 1},
		{"a file system in the tables", listed{ImportPath: own("replication/extent/table"), Imports: []string{"github.com/cockroachdb/pebble/v2/vfs"}}, 1},
		{"a lock in the tables", listed{ImportPath: own("replication/extent/table"), Imports: []string{"sync", "sync/atomic"}}, 2},
		{"the store in the tables", listed{ImportPath: own("replication/extent/table"), Imports: []string{own("replication/extent")}}, 1},
		{"ops and places in the tables", listed{ImportPath: own("replication/extent/table"), Imports: []string{own("replication/op"), own("replication/segment")}}, 0},
		{"Pebble in the store", listed{ImportPath: own("replication/extent"), Imports: []string{"github.com/cockroachdb/pebble/v2"}}, 1},
		{"Pebble's file systems in the store", listed{ImportPath: own("replication/extent"), Imports: []string{"github.com/cockroachdb/pebble/v2/vfs"}}, 0},
		{"tables in their database", listed{ImportPath: own("replication/extent/tabledb"), Imports: []string{own("replication/extent/table")}}, 1},
		{"the store in its workers", listed{ImportPath: own("replication/extent/reclaim"), Imports: []string{own("replication/extent")}}, 1},
		{"the store in its scrub", listed{ImportPath: own("replication/extent/scrub"), Imports: []string{own("replication/extent")}}, 1},
		{"the store in its compaction", listed{ImportPath: own("replication/extent/compact"), Imports: []string{own("replication/extent")}}, 1},
		{"the store in what judges its room", listed{ImportPath: own("replication/extent/room"), Imports: []string{own("replication/extent")}}, 1},
		{"the log in what judges its room", listed{ImportPath: own("replication/extent/room"), Imports: []string{own("replication/segment")}}, 1},
		{"the database in the workers", listed{ImportPath: own("replication/extent/reclaim"), Imports: []string{own("replication/extent/tabledb")}}, 1},
		{"op in nbd", listed{ImportPath: own("nbd"), Imports: []string{own("replication/op")}}, 1},
		{"op in the gateway", listed{ImportPath: own("gateway/volume"), Imports: []string{own("replication/op")}}, 0},
		{"the controller in status", listed{ImportPath: own("server/status"), Imports: []string{own("server/control")}}, 1},
		{"Raft through others in status", listed{ImportPath: own("server/status"), Deps: []string{"github.com/hashicorp/raft"}}, 1},
		{"Pebble through others in status", listed{ImportPath: own("server/status"), Deps: []string{"github.com/cockroachdb/pebble/v2"}}, 1},
		{"a node in a test of status", listed{ImportPath: own("server/status"), TestImports: []string{own("server")}}, 1},
		{"peers and the catalog in status", listed{ImportPath: own("server/status"), Imports: []string{own("replication/peer"), own("server/catalog")}}, 0},
		{"the controller in the desk", listed{ImportPath: own("server/session"), Deps: []string{own("server/control")}}, 1},
		{"raft through others in a host's gateway", listed{ImportPath: own("gateway/hostgateway"), Deps: []string{"github.com/hashicorp/raft"}}, 1},
		{"bolt through others in a host's gateway", listed{ImportPath: own("gateway/hostgateway"), Deps: []string{"go.etcd.io/bbolt"}}, 1},
		{"groups through others in the router", listed{ImportPath: own("gateway/route"), Deps: []string{own("replication"), own("replication/extent")}}, 2},
		{"the catalog in the way from outside", listed{ImportPath: own("gateway/remote"), Imports: []string{own("server/catalog")}}, 1},
		{"the node in a test of a gateway", listed{ImportPath: own("gateway/hostgateway"), TestImports: []string{own("server")}}, 1},
		{"peers and requests in the gateway's way", listed{ImportPath: own("gateway/remote"), Imports: []string{own("replication/op"), own("replication/peer/rpc")}}, 0},
		{"CSI in the Docker plugin", listed{ImportPath: own("api/dockerplugin"), Imports: []string{own("api/csi")}}, 1},
		{"Docker in CSI", listed{ImportPath: own("api/csi"), Imports: []string{own("api/dockerplugin")}}, 1},
		{"CSI's world in the Docker plugin's tests", listed{ImportPath: own("api/dockerplugin"), TestImports: []string{own("api/csi/csitest")}}, 0},
		{"net in the catalog", listed{ImportPath: own("server/catalog"), Imports: []string{"net"}}, 1},
		{"server in replication", listed{ImportPath: own("replication"), Deps: []string{own("server/catalog")}}, 1},
		{"the catalog in storagectl", listed{ImportPath: own("cmd/storagectl"), Imports: []string{own("server/catalog")}}, 0},
		{"the catalog in the typed client", listed{ImportPath: own("api/client"), Imports: []string{own("server/catalog")}}, 1},
		{"the controller in storagectl", listed{ImportPath: own("cmd/storagectl"), Imports: []string{own("server/control")}}, 1},
		{"replication in storagectl", listed{ImportPath: own("cmd/storagectl"), Deps: []string{own("replication")}}, 1},
		{"test helpers in what is shipped", listed{ImportPath: own("server"), Imports: []string{own("internal/simnet")}}, 1},
		{"test helpers in tests", listed{ImportPath: own("server"), TestImports: []string{own("internal/simnet")}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, r := range rules {
				got = append(got, r.violations([]listed{tc.pkg})...)
			}
			if len(got) != tc.want {
				t.Errorf("found %d violations, want %d: %q", len(got), tc.want, got)
			}
		})
	}
}
