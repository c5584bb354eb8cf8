package lighthouse

import (
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// slowSocket lets a writer go for each value in its channel.
type slowSocket struct {
	dns.Writer
	entered sync.WaitGroup
	free    chan struct{}
	mu      sync.Mutex
	wrote   int
}

func (s *slowSocket) Write(reply []byte) (int, error) {
	s.entered.Done()
	<-s.free
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote++
	return len(reply), nil
}

// TestWaitingIsBounded: of those that wait for a socket the latest goes without its reply, and is counted; when some have gone, others wait.
func TestWaitingIsBounded(t *testing.T) {
	dropped := 0
	slow, s := &slowSocket{free: make(chan struct{})}, &socket{drop: func() { dropped++ }}
	var done sync.WaitGroup
	write := func(n int) {
		slow.entered.Add(n)
		for range n {
			done.Go(func() {
				if n, err := s.writer(slow).Write(make([]byte, 30)); n != 30 || err != nil {
					t.Errorf("wrote %d, %v", n, err)
				}
			})
		}
		slow.entered.Wait()
	}
	write(maxWaiting)
	for range 10 {
		if n, err := s.writer(slow).Write(make([]byte, 30)); n != 30 || err != nil {
			t.Errorf("wrote %d, %v, without a place", n, err)
		}
	}
	if dropped != 10 {
		t.Errorf("%d are counted as dropped, want 10", dropped)
	}
	close(slow.free)
	done.Wait()
	write(1)
	done.Wait()
	if slow.wrote != maxWaiting+1 || dropped != 10 || s.waiting.Load() != 0 {
		t.Errorf("%d were written, want %d; %d dropped, want 10; %d wait", slow.wrote, maxWaiting+1, dropped, s.waiting.Load())
	}
}
