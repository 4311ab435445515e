package fair_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/akv-injector/akv-injector/internal/fair"
)

// TestCapacity counts how many of 120 units each of some peers gets without waiting, if each takes
// as many as it can.
func TestCapacity(t *testing.T) {
	for peers, each := range map[int]int{1: 60, 2: 40, 3: 30, 5: 20} {
		c := fair.NewCapacity[int](120)
		got := make([]int, peers)
		for range 120 {
			for i := range peers {
				if c.TryAcquire(i, 1) {
					got[i]++
				}
			}
		}
		for i := range got {
			if got[i] != each {
				t.Errorf("%d peers: got %d, want %d each", peers, got, each)
				break
			}
		}
		if !c.TryAcquire(99, 1) {
			t.Errorf("%d peers: a new peer gets nothing", peers)
		}
	}
}

// TestCapacityIsFair shows that the peer that uses the least is served first, even if another has
// waited longer, and that requests which fit do not wait.
func TestCapacityIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fair.NewCapacity[int](12)
		flood, other := 1, 2
		for range 6 {
			if err := c.Acquire(t.Context(), flood, 1); err != nil {
				t.Fatal(err)
			}
		}
		order := make(chan string, 10)
		wait := func(name string, peer int, size int64) {
			go func() {
				if err := c.Acquire(t.Context(), peer, size); err != nil {
					name = err.Error()
				}
				order <- name
			}()
			synctest.Wait()
		}
		wait("flood", flood, 1)
		wait("large", other, 4)
		wait("small, of a new peer", 3, 1)
		if got := <-order; got != "small, of a new peer" {
			t.Errorf("first is %q", got)
		}
		wait("behind the large one", other, 1)
		for _, want := range []string{"", "flood", "", "large", "", "behind the large one"} { // after each release
			c.Release(flood, 1)
			synctest.Wait()
			got := ""
			select {
			case got = <-order:
			default:
			}
			if got != want {
				t.Errorf("next is %q, want %q", got, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Acquire(ctx, flood, 6); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a timeout", err)
		}
	})
}

// TestGivingUp shows that a canceled request no longer delays the later requests of its peer.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := fair.NewCapacity[int](12), 1
		if err := c.Acquire(t.Context(), peer, 3); err != nil {
			t.Fatal(err)
		}
		ctx, giveUp := context.WithCancel(t.Context())
		large, small := make(chan error, 1), make(chan error, 1)
		go func() { large <- c.Acquire(ctx, peer, 6) }()
		synctest.Wait()
		go func() { small <- c.Acquire(t.Context(), peer, 3) }()
		synctest.Wait()
		giveUp()
		if err := <-large; !errors.Is(err, context.Canceled) {
			t.Errorf("the first gets %v", err)
		}
		if err := <-small; err != nil {
			t.Errorf("the second gets %v", err)
		}
	})
}
