package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// pending proposes a write at the leader and returns a channel with its answer.
func (c *client) pending(leader storage.NodeID, offset uint32, data []byte) <-chan error {
	o := c.writeOp(offset, data)
	done := make(chan error, 1)
	replicas := c.h.nodes[leader].replicas
	go func() {
		r, err := replicas.Propose(context.Background(), c.group, [][]byte{o.AppendHeader(nil), data})
		if err == nil {
			err = r.Err("write", "")
		}
		done <- err
	}()
	return done
}

// others returns the two nodes beside one of three.
func others(n storage.NodeID) (a, b storage.NodeID) {
	a, b = n%3+1, (n+1)%3+1
	return a, b
}

// testHeld starts a three-voter group, prepares the cut and the stalled disk, writes, and wants no acknowledgement
// before the disk has answered.
func testHeld(t *testing.T, prepare func(h *harness, leader, a, b storage.NodeID) (release func())) {
	synctest.Test(t, func(t *testing.T) {
		h, c, _ := three(t)
		defer h.close()
		c.write(0, block(1))
		leader := h.awaitLeader(1)
		a, b := others(leader)
		release := prepare(h, leader, a, b)
		done := c.pending(leader, 0, block(2))
		<-time.After(300 * time.Millisecond)
		select {
		case err := <-done:
			t.Fatalf("answered (%v) although only one disk of three holds the entry", err)
		default:
		}
		release()
		if err := <-done; err != nil {
			t.Fatalf("not acknowledged after the disk answered: %v", err)
		}
		h.equal(c.read(0, storage.BlockSize), block(2), "after the acknowledgement")
	})
}

// TestFollowerHoldsItsAcknowledgement guards I1 and I7: without the Notify of Transport.serveAppend (tried: answer at
// once) the write is acknowledged while only the leader's disk holds it.
func TestFollowerHoldsItsAcknowledgement(t *testing.T) {
	testHeld(t, func(h *harness, leader, a, b storage.NodeID) func() {
		h.net.Isolate(nodeName(b))
		h.nodes[a].stall.begin()
		return h.nodes[a].stall.end
	})
}

// TestLeaderHoldsItsFollowersAcknowledgement guards I1: without the Notify of Transport.answered (tried: pass on at
// once) the write is acknowledged while only one follower's disk holds it, because the library counts the leader.
func TestLeaderHoldsItsFollowersAcknowledgement(t *testing.T) {
	testHeld(t, func(h *harness, leader, a, b storage.NodeID) func() {
		h.net.Isolate(nodeName(b))
		h.nodes[leader].stall.begin()
		return h.nodes[leader].stall.end
	})
}

// TestLoneVoterWaitsForItsDisk guards I1: without the wait of logStore.StoreLogs for one voter (tried) the library
// commits when StoreLogs returns.
func TestLoneVoterWaitsForItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, c := alone(t)
		defer h.close()
		c.write(0, block(1))
		n.stall.begin()
		done := c.pending(1, 0, block(2))
		<-time.After(300 * time.Millisecond)
		select {
		case err := <-done:
			t.Fatalf("answered (%v) before the disk was", err)
		default:
		}
		n.stall.end()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// TestPowerCutOfAMajorityKeepsWhatWasAcknowledged writes while disks are slow, cuts the power of all three nodes, and
// wants every acknowledged block back.
func TestPowerCutOfAMajorityKeepsWhatWasAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, _ := three(t)
		defer h.close()
		acked := map[uint32]byte{}
		for round := range 6 {
			leader := h.awaitLeader(1)
			stalled := storage.NodeID((int(leader)-1+round)%3 + 1) // the leader's own in two rounds: nothing is acknowledged then
			h.nodes[stalled].stall.begin()
			type write struct {
				at   uint32
				b    byte
				done <-chan error
			}
			var writes []write
			for i := range uint32(8) {
				w := write{at: i * storage.BlockSize, b: byte(16*round) + byte(i) + 1}
				w.done = c.pending(leader, w.at, block(w.b))
				writes = append(writes, w)
			}
			<-time.After(200 * time.Millisecond)
			synctest.Wait()
			unknown := map[uint32]byte{}
			for _, w := range writes {
				select {
				case err := <-w.done:
					if err == nil {
						acked[w.at] = w.b
						continue
					}
				default:
				}
				unknown[w.at] = w.b
			}
			for id := storage.NodeID(1); id <= 3; id++ {
				h.nodes[id].crash()
			}
			for id := storage.NodeID(1); id <= 3; id++ {
				h.nodes[id].start()
			}
			for at, b := range acked {
				got := c.read(at, storage.BlockSize)
				if got[0] != b && got[0] != unknown[at] {
					t.Fatalf("round %d, block %d: read %d, acknowledged %d", round, at/storage.BlockSize, got[0], b)
				}
				acked[at] = got[0] // an unknown outcome is known now
			}
			c.session++
			c.seq = 0
			if r := c.do(op.Op{Kind: op.OpenSession, Volume: c.volume, Session: c.session}, nil); r.Kind != storage.KindNone {
				t.Fatalf("open session: %+v", r)
			}
		}
		if len(acked) == 0 {
			t.Fatal("nothing was acknowledged: the test shows nothing")
		}
	})
}
