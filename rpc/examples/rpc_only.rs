use longshore_rpc::app::*;
use longshore_rpc::exec::block_on;
fn main() {
    let log = longshore_rpc::logging::Log::install();
    let app = App::new(Parts { log, ..Parts::default() });
    if std::env::args().nth(2).is_none() { block_on(app.init()).unwrap(); }
    let _s = longshore_rpc::server::Server::start(std::env::args().nth(1).unwrap().as_ref(), move |_| std::rc::Rc::new(Dispatcher(app))).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(600));
}
