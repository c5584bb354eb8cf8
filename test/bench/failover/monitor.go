package main

import (
	"bufio"
	"os/exec"
	"strings"
	"sync"
)

// monitor keeps lines of a command that goes on and on.
type monitor struct {
	command *exec.Cmd
	mu      sync.Mutex
	lines   []string
}

// startMonitor keeps the lines that hold the words.
func startMonitor(command *exec.Cmd, words string) (*monitor, error) {
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	m := &monitor{command: command}
	go func() {
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			if strings.Contains(scanner.Text(), words) {
				m.mu.Lock()
				m.lines = append(m.lines, scanner.Text())
				m.mu.Unlock()
			}
		}
	}()
	return m, nil
}

// take gives the lines that have come since it was last called.
func (m *monitor) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	lines := m.lines
	m.lines = nil
	return lines
}

// stop ends the command, which knows no other end than being killed.
func (m *monitor) stop() {
	_ = m.command.Cancel()
	_ = m.command.Wait()
}
