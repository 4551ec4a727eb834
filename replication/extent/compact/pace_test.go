package compact

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

const mib = 1 << 20

// roomOf returns a disk of 1,000 MiB with so many free above a reserve of 10, and so much alive.
func roomOf(free, liveBlocks int64) Room {
	return Room{Free: (free + 10) * mib, Reserve: 10 * mib, Used: (990 - free) * mib, SegmentBytes: mib, LiveBlocks: liveBlocks}
}

// roomOfSegments is roomOf with segments of such a size.
func roomOfSegments(free, segmentBytes, liveBlocks int64) Room {
	r := roomOf(free, liveBlocks)
	r.SegmentBytes = segmentBytes
	return r
}

// TestNeed: what is free, and what does not live, decide whether blocks are moved; while nobody writes there is always time.
func TestNeed(t *testing.T) {
	full := Capacity(mib)
	for _, test := range []struct {
		name string
		room Room
		want need
	}{
		{"plenty", roomOf(500, 400*full), nothing},
		{"a third is garbage, and there is room", roomOf(500, 150*full), nothing},
		// Of 990 MiB 790 do not live, a twelfth of which are 66.
		{"twice as much as is to be free", roomOf(134, 200*full), nothing},
		{"less than that", roomOf(130, 200*full), due},
		{"more than a quarter of it", roomOf(17, 200*full), due},
		{"less than a quarter of it", roomOf(15, 200*full), urgent},
		// A twelfth of 90 are less than three segments of 8 MiB.
		{"little is left, in segments", roomOfSegments(16, 8*mib, 900*full), due},
		{"hardly anything is left", roomOfSegments(2, 8*mib, 900*full), urgent},
		{"below the reserve", roomOf(-5, 900*full), urgent},
	} {
		now := time.Now()
		written := int64(0)
		p := pace{room: func() Room { r := test.room; r.WrittenBlocks = written; return r }, latency: func() time.Duration { return 0 }}
		for range 8 {
			written++
			now = now.Add(time.Second)
			if got := p.look(now); got != test.want {
				t.Errorf("%s: %d, want %d", test.name, got, test.want)
			}
		}
		now = now.Add(idleAfter)
		if got := p.look(now); got != max(test.want, idle) {
			t.Errorf("%s, nobody writes: %d, want %d", test.name, got, max(test.want, idle))
		}
	}
}

// TestRate: the less room there is, the more is moved for what clients write; slow syncs brake, and quick ones let go.
func TestRate(t *testing.T) {
	room, latency := roomOf(100, 700*Capacity(mib)), time.Millisecond
	p := pace{room: func() Room { return room }, latency: func() time.Duration { return latency }}
	now := time.Now()
	look := func() float64 {
		now = now.Add(time.Second)
		room.WrittenBlocks += 100 * mib / 4096
		p.look(now)
		return p.rate(now) / mib
	}
	for range 20 {
		look()
	}
	p.use = 0.5 // as much is moved as is written
	for _, test := range []struct {
		free float64 // the goal is a twelfth of that and 190 more
		want float64
	}{{38.1, 0}, {27.14, 50}, {17.27, 100}, {12.67, 250}, {8.26, 400}} {
		room.Free = int64((test.free + 10) * mib)
		if got := look(); got < 0.97*test.want-1 || got > 1.03*test.want+1 {
			t.Errorf("%.1f MiB free: %.0f MiB/s, want about %.0f", test.free, got, test.want)
		}
	}
	latency = 2 * time.Millisecond
	p.brake.Use()
	half := look()
	for range 9 {
		p.brake.Use()
		look()
	}
	if least := look(); half < 190 || half > 210 || least < 24 || least > 70 {
		t.Errorf("syncs are slow: %.0f, then %.0f MiB/s", half, least)
	}
	latency = time.Millisecond
	for range 12 {
		p.brake.Use()
		look()
	}
	if p.brake.Part() != 1 {
		t.Errorf("syncs are quick again: brake %v", p.brake.Part())
	}
}

// TestNoBursts: what may be copied in a second is spread over it, also after a pause. Guard: burst, in pace.go; with a whole second of it
// this fails.
func TestNoBursts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := roomOf(12, 700*Capacity(mib)) // 8 MiB a second
		p := pace{room: func() Room { room.WrittenBlocks++; return room }, latency: func() time.Duration { return 0 }}
		for range 3 {
			time.Sleep(3 * time.Second)
			start, copied := time.Now(), 0
			for ; time.Since(start) < time.Second/4; copied += mib / 16 {
				if err := p.wait(t.Context(), mib/16); err != nil {
					t.Fatal(err)
				}
			}
			if copied > 3*mib {
				t.Errorf("%d KiB were copied in a quarter of a second, of 8 MiB/s", copied>>10)
			}
		}
	})
}

// TestQuietIsNoReasonToWait: what is begun is ended though nobody writes any more, with more free than the goal, too. Guard: least, in rate.
func TestQuietIsNoReasonToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := roomOf(40, 700*Capacity(mib)) // more than the goal, less than twice that
		p := pace{room: func() Room { return room }, latency: func() time.Duration { return 0 }, use: 0.5}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range 32 {
			if err := p.wait(ctx, mib); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(p.quiet); p.need(time.Now()) != due || d < idleAfter || d > idleAfter+3*time.Second {
			t.Errorf("it is %d, and 32 MiB took until %v after the last write", p.need(time.Now()), d)
		}
	})
}

// TestWaitAtHardlyAnyRate: who waits for what clients will write, and they write no more, sleeps. Guard: the comparison before rest is
// divided by the rate, in pace.go; without it the time overflowed once, and the wait was a loop that never slept.
func TestWaitAtHardlyAnyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room, looks := roomOf(100, 700*Capacity(mib)), 0 // a little more than the goal
		p := pace{room: func() Room { looks++; return room }, latency: func() time.Duration { return 0 }, use: 0.5}
		p.look(time.Now())
		room.Free = 30 * mib
		room.WrittenBlocks = 10
		time.Sleep(paceEvery)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for ctx.Err() == nil {
			_ = p.wait(ctx, mib)
			room.WrittenBlocks = 10 + int64(time.Hour) // never quiet, and nothing written
			p.written, p.quiet = room.WrittenBlocks, time.Now()
		}
		if looks > 5*3600 { // each time it has slept a quarter of a second
			t.Errorf("the room was looked at %d times in an hour", looks)
		}
	})
}

// TestWait keeps the rate, and does not wait when it is urgent.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := roomOf(12, 700*Capacity(mib)) // three quarters of the goal
		p := pace{room: func() Room { room.WrittenBlocks++; return room }, latency: func() time.Duration { return 0 }}
		start := time.Now()
		for range 100 {
			if err := p.wait(t.Context(), mib); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d < 10*time.Second || d > 14*time.Second {
			t.Errorf("100 MiB at 8 MiB/s took %v", d)
		}
		room.Free = 11 * mib
		time.Sleep(paceEvery)
		start = time.Now()
		for range 100 {
			if err := p.wait(t.Context(), mib); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("it is urgent, and 100 MiB took %v", d)
		}
	})
}
