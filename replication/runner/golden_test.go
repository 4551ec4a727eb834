package runner

import (
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var update = flag.Bool("update", false, "rewrite the golden file in testdata")

// The layouts in docs/format/raft.md do not change by accident: other nodes may run another version.
func TestGoldenBytes(t *testing.T) {
	var dump strings.Builder
	add := func(name string, header []byte) { dump.WriteString(name + "\n" + hex.Dump(header)) }
	h := sampleHeader()
	entries, _ := encodeAppend("store/1", &raft.AppendEntriesRequest{RPCHeader: h, Term: 7, PrevLogEntry: 41, PrevLogTerm: 6, LeaderCommitIndex: 40,
		Entries: []*raft.Log{{Index: 42, Term: 8, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("x"), AppendedAt: time.Unix(5, 6)},
			{Index: 43, Term: 7, Type: raft.LogNoop}}})
	add("append entries", entries)
	answer := raft.AppendEntriesResponse{RPCHeader: h, Term: 7, LastLog: 9, Success: true, NoRetryBackoff: true}
	add("append entries response", encodeAppendResponse(&answer, 5))
	add("request vote", encodeVote("store/1", &raft.RequestVoteRequest{RPCHeader: h, Term: 7, LastLogIndex: 9, LastLogTerm: 6, LeadershipTransfer: true}))
	add("request pre-vote", encodePreVote("store/1", &raft.RequestPreVoteRequest{RPCHeader: h, Term: 7, LastLogIndex: 9, LastLogTerm: 6}))
	add("verdict", encodeVerdict(h, 7, true))
	add("timeout now", encodeTimeoutNow("store/1", timeoutNow{h, 7}))
	add("install snapshot", encodeInstall("store/1", installPart{stream: 77, offset: 4 << 20, manifest: "1-100-1", last: true,
		req: &raft.InstallSnapshotRequest{RPCHeader: h, SnapshotVersion: SnapshotVersion, Term: 7, LastLogIndex: 100, LastLogTerm: 6,
			Configuration: []byte("members"), ConfigurationIndex: 90}}))
	beat := heartbeat{group: 4, to: "store/1", req: &raft.AppendEntriesRequest{RPCHeader: h, Term: 7}}
	add("heartbeats", encodeHeartbeats([]heartbeat{beat, beat}))
	add("heartbeat answers", encodeHeartbeatAnswers([]heartbeatAnswer{{}, {present: true, freeBytes: 5, resp: answer}}))

	path := filepath.Join("testdata", "messages.hex")
	if *update {
		if err := os.WriteFile(path, []byte(dump.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if dump.String() != string(want) {
		t.Errorf("the messages changed, from\n%s\nto\n%s", want, dump.String())
	}
}
